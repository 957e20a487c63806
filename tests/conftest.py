"""Fixtures: small seeded networks, real data if available, and one JupyterLab for all browser tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import importlib
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import lab
from widget_helpers import Gate

from convis_widgets.core.network.network import Network
from convis_widgets.core.threads import limit_threads

limit_threads()  # as the first Run does
DEVICE = torch.device(os.environ.get("CONVIS_TEST_DEVICE", "cpu"))  # of the networks in fixtures; "cuda" in make test-gpu
ROOT = Path(__file__).parent.parent
CACHE = tempfile.TemporaryDirectory(prefix="convis-tests-")  # tests never write into the user's cache
os.environ["CONVIS_CACHE"] = CACHE.name


def calibrate(module: nn.Module, size: int, channels: int = 3) -> nn.Module:
    """Rescale random weights, so that gradients and probabilities are not vanishingly small.

    One batch in training mode with batch-norm momentum 1; then the last layer is scaled to logits of standard deviation 3.
    """
    batch = torch.rand(8, channels, size, size, generator=torch.Generator().manual_seed(0))
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    module.train(bool(norms))
    with torch.no_grad():
        module(batch)
    module.eval()
    last = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    with torch.no_grad():
        scale = 3 / module(batch).std()
        last.weight.mul_(scale)
        if last.bias is not None:
            last.bias.mul_(scale)
    return module


class Tiny(nn.Module):
    """A small module with special cases: in-place, reused and functional ReLU, a branch, a stride, a pool."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.side = nn.Conv2d(6, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x) + self.side(x))
        x = nn.functional.relu(self.pool(x) - 0.1)
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def tiny_module() -> nn.Module:
    torch.manual_seed(0)
    return calibrate(Tiny(), 16)


@pytest.fixture
def tiny(tiny_module: nn.Module) -> Network:
    return Network(tiny_module, size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), name="tiny", device=DEVICE)


@pytest.fixture
def tiny_gray() -> Network:
    torch.manual_seed(0)
    return Network(calibrate(Tiny(1), 16, 1), size=16, name="tiny gray", device=DEVICE)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache for this test."""
    monkeypatch.setenv("CONVIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    created = Gate(monkeypatch)
    yield created
    created.let(10_000)


@pytest.fixture(scope="session")
def demo_net() -> Network:
    return Network.demo()


# -- real weights and image files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real() -> Path:
    folder = os.environ.get("CONVIS_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CONVIS_TEST_DATA is not a folder with real weights and image files")
    return Path(folder)


@pytest.fixture(scope="session")
def torch_home(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with the weights of SqueezeNet at the path that torchvision reads."""
    home = tmp_path_factory.mktemp("torch")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(real / "weights" / "squeezenet1_1.pth", home / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    return home


@pytest.fixture(scope="session")
def squeezenet(torch_home: Path) -> Network:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        with warnings.catch_warnings(action="ignore"):  # the file may have been saved again
            return Network.ensure("squeezenet1_1")


@pytest.fixture(scope="session")
def mobilenet(real: Path) -> Network:
    import torchvision

    module = torchvision.models.mobilenet_v2()
    module.load_state_dict(torch.load(real / "weights" / "mobilenet_v2.pth", weights_only=True))
    return Network(module, name="mobilenet_v2", device=DEVICE)


@pytest.fixture(scope="session")
def tiny_darknet(real: Path, squeezenet: Network) -> Network:
    sys.path.insert(0, str(real / "weights"))
    try:
        module = importlib.import_module("nets").TinyDarknet()
    finally:
        sys.path.pop(0)
    module.load_state_dict(torch.load(real / "weights" / "tiny_darknet.pth", weights_only=True))
    from convis_widgets.core.network.transform import Transform

    transform = Transform((224, 224), 3, resize=256)
    return Network(module, transform=transform, labels=squeezenet.labels, name="tiny_darknet", device=DEVICE)


@pytest.fixture(scope="session")
def photo_labels(real: Path) -> dict[str, Any]:
    return json.loads((real / "photos" / "labels.json").read_text())


_real: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "real" in report.keywords and (report.when == "call" or report.outcome == "skipped"):
        _real[report.nodeid] = "SKIPPED" if report.outcome == "skipped" else "RUN"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _real:
        terminalreporter.section("tests on real weights and image files")
        for name, result in _real.items():
            terminalreporter.line(f"{result:8} {name}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CONVIS_TEST_DATA") and "SKIPPED" in _real.values():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real" in getattr(item, "fixturenames", ()):
            item.add_marker("real")
        if "notebook" in getattr(item, "fixturenames", ()) or "lab_page" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU with CUDA"))


# -- JupyterLab ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    root = tmp_path_factory.mktemp("lab")
    with lab.server(root) as url:
        yield url, root


@pytest.fixture(scope="session")
def lab_browser() -> Iterator[Any]:
    with lab.browser() as context:
        yield context


@pytest.fixture
def lab_page(lab_server: tuple[str, Path], lab_browser: Any) -> Iterator[lab.LabPage]:
    """An empty page in which cells can be opened."""
    url, root = lab_server
    page = lab.LabPage(lab_browser.new_page(), url, root)
    yield page
    page.close()
