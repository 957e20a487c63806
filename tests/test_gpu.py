"""What needs a GPU: results are those of the CPU, memory is given back, and shortage of it is survived."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import calibrate
from test_techniques import start

from convis_widgets.core.attribution.incremental import patch_runner
from convis_widgets.core.dataset.top_k import TopK
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques import occlusion

pytestmark = pytest.mark.gpu
EXPLANATIONS = ("saliency", "guided_backprop", "deconvnet", "smooth_grad", "integrated_gradients", "grad_cam", "score_cam")


@pytest.fixture(scope="module")
def pair() -> tuple[Network, Network]:
    """ResNet-18 on the CPU and on the GPU."""
    torch.manual_seed(0)
    module = calibrate(torchvision.models.resnet18(weights=None), 96)
    return Network(module, size=96), Network(module, size=96, device="cuda")


@pytest.fixture
def photo() -> np.ndarray:
    low = np.random.default_rng(1).random((12, 12, 3))
    return np.kron(low, np.ones((8, 8, 1))).astype(np.float32)


@pytest.mark.parametrize("name", [*EXPLANATIONS, "occlusion"])
def test_explanation_is_that_of_the_cpu(name: str, pair: tuple[Network, Network], photo: np.ndarray) -> None:
    """PyTorch computes convolutions in TF32 by default, with errors of some percent."""
    expected, actual = (Run(start(name, net, photo, target=3)).run().heat for net in pair)
    spread = np.ptp(expected)
    assert spread > 0
    assert np.abs(actual - expected).max() < 1e-4 * spread


def test_occlusion_is_exact_with_the_plan_of_another_image(pair: tuple[Network, Network], photo: np.ndarray) -> None:
    for image in (photo, photo[::-1].copy(), photo):
        expected, actual = (Run(occlusion(net, image, target=1, patch_size=16, stride=8)).run() for net in pair)
        assert np.allclose(actual.arrays["probability"], expected.arrays["probability"], atol=1e-5)


@pytest.mark.parametrize("one_per_image", [True, False])
def test_top_k_breaks_ties_as_on_the_cpu(one_per_image: bool) -> None:
    maps = torch.randint(-1, 3, (40, 8, 6, 5), generator=torch.Generator().manual_seed(0)).float()
    states = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        top_k = TopK((8, 6, 5), 9, one_per_image, device)
        for first in range(0, 40, 8):
            top_k.update(maps[first : first + 8].to(device), range(first, first + 8))
        states.append(top_k.arrays())
    for a, b in zip(*states, strict=True):
        assert np.array_equal(a, b)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A tenth of the GPU's memory."""
    torch.cuda.set_per_process_memory_fraction(0.1)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_occlusion_with_little_memory(
    pair: tuple[Network, Network], photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_runner, "available_memory", lambda _device: 1 << 50)
    frame = Run(occlusion(pair[1], np.kron(photo, np.ones((4, 4, 1), np.float32)), target=1, patch_size=16, stride=8)).run()
    assert np.isfinite(frame.heat).all()


def test_nothing_stays_allocated(photo: np.ndarray) -> None:
    def use() -> Any:
        net = Network(calibrate(torchvision.models.resnet18(weights=None), 96), size=96, device="cuda")
        return Run(occlusion(net, photo, target=1, patch_size=16, stride=8)).run()

    use()
    gc.collect()
    before = torch.cuda.memory_allocated()
    frame = use()
    gc.collect()
    assert frame.done
    assert torch.cuda.memory_allocated() <= before
