"""The examples of CONTRIBUTING.md are complete and work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)

RUN_TECHNIQUE = """
from convis_widgets import Network, Run, SaliencyViewer, demo
import numpy as np
net, scene = Network.demo(), demo.images(1, seed=4)[0]
frame = Run(input_times_gradient(net, scene.image, scale=2.0)).run()
image = net.batch(scene.image).requires_grad_()
net(image)[0].max().backward()
expected = 2 * (image.grad * image)[0].sum(0).detach().numpy()
assert np.abs(expected).max() > 0.01 and np.allclose(frame.heat, expected, atol=1e-5)
viewer = SaliencyViewer(net, scene.image, method="input times gradient", input_times_gradient_scale=3.0)
assert viewer.controls["input_times_gradient_scale"].value == 3.0
assert np.allclose(viewer.frames["input times gradient"].heat, 1.5 * expected, atol=1e-5) and not viewer.status.value
"""

RUN_WIDGET = """
from convis_widgets import Network
viewer = InputGradientViewer(samples=4)
assert viewer.run.join(60) and not viewer.status.value
viewer.controls["opacity"].value = 0.2
assert viewer.opacity == 0.2
viewer.target = "star"
assert viewer.run.join(60) and viewer.controls["target"].value == viewer.target
assert viewer.snapshot().ndim == 3 and "samples" in InputGradientViewer.__doc__
viewer.close()
"""


@pytest.mark.parametrize(
    ("block", "package", "test"),
    [(0, "convis_widgets.techniques.attribution", RUN_TECHNIQUE), (1, "convis_widgets.widgets.attribution", RUN_WIDGET)],
    ids=["technique", "widget"],
)
def test_contributing_example_runs(block: int, package: str, test: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(BLOCKS[block])
    code = (
        f"import importlib, importlib.util, sys; importlib.import_module({package!r});"
        f"spec = importlib.util.spec_from_file_location({package + '.example'!r}, {str(tmp_path / 'example.py')!r});"
        "module = importlib.util.module_from_spec(spec); sys.modules[spec.name] = module; spec.loader.exec_module(module);"
        f"exec({test!r}, vars(module))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_map_in_contributing_names_every_module() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    words = set(re.findall(r"\w+", text.split("```")[1]))
    package = ROOT / "convis_widgets"
    folders = [package / "core", *(package / "widgets" / name for name in ("base", "controls", "drawing"))]
    assert {path.stem for folder in folders for path in folder.rglob("*.py")} - words == {"__init__"}
