"""Fixtures: small seeded networks, real data where it is at hand, and one JupyterLab for all browser tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import lab
from seen import Gate

from convis_widgets.core import Network

ROOT = Path(__file__).parent.parent
CACHE = tempfile.TemporaryDirectory(prefix="convis-tests-")  # no test writes into the user's own
os.environ["CONVIS_CACHE"] = CACHE.name


def calibrate(module: nn.Module, size: int, channels: int = 3) -> nn.Module:
    """Give random weights statistics under which gradients and probabilities are not vanishingly small.

    One batch in training mode with batch-norm momentum 1, then the last layer scaled to scores of deviation 3.
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
    """Ten lines that hold what trips tools up: in-place, reused and functional ReLU, a branch, a stride, a pool."""

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
    return Network(tiny_module, size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), name="tiny")


@pytest.fixture
def tiny_gray() -> Network:
    torch.manual_seed(0)
    return Network(calibrate(Tiny(1), 16, 1), size=16, name="tiny gray")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cache but the test's own."""
    monkeypatch.setenv("CONVIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.let(10_000)


@pytest.fixture(scope="session")
def demo_net() -> Network:
    return Network.demo()


# -- real weights and photographs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real() -> Path:
    folder = os.environ.get("CONVIS_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CONVIS_TEST_DATA names no folder with real weights and photographs")
    return Path(folder)


@pytest.fixture(scope="session")
def torch_home(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with SqueezeNet's weights where torchvision's loader looks for them."""
    home = tmp_path_factory.mktemp("torch")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(real / "weights" / "squeezenet1_1.pth", home / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    return home


@pytest.fixture(scope="session")
def squeezenet(torch_home: Path) -> Network:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(torch_home))
        return Network.ensure("squeezenet1_1")


@pytest.fixture(scope="session")
def mobilenet(real: Path) -> Network:
    import torchvision

    module = torchvision.models.mobilenet_v2()
    module.load_state_dict(torch.load(real / "weights" / "mobilenet_v2.pth", weights_only=True))
    return Network(module, name="mobilenet_v2")


@pytest.fixture(scope="session")
def tiny_darknet(real: Path, squeezenet: Network) -> Network:
    sys.path.insert(0, str(real / "weights"))
    try:
        from nets import TinyDarknet
    finally:
        sys.path.pop(0)
    module = TinyDarknet()
    module.load_state_dict(torch.load(real / "weights" / "tiny_darknet.pth", weights_only=True))
    from convis_widgets.core import Transform

    transform = Transform((224, 224), 3, resize=256)
    return Network(module, transform=transform, labels=squeezenet.labels, name="tiny_darknet")


@pytest.fixture(scope="session")
def photo_labels(real: Path) -> dict[str, Any]:
    return json.loads((real / "photos" / "labels.json").read_text())


_real: dict[str, str] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if "real" in item.keywords and (report.when == "call" or report.outcome == "skipped"):
        _real[item.nodeid] = "SKIPPED" if report.outcome == "skipped" else "RUN"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _real:
        terminalreporter.section("tests on real weights and photographs")
        for name, what in _real.items():
            terminalreporter.line(f"{what:8} {name}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CONVIS_TEST_DATA") and "SKIPPED" in _real.values():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real" in getattr(item, "fixturenames", ()):
            item.add_marker("real")
        if "notebook" in getattr(item, "fixturenames", ()) or "lab_page" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


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
    """An empty page; open cells in it."""
    url, root = lab_server
    page = lab.LabPage(lab_browser.new_page(), url, root)
    yield page
    page.close()
