"""What the host does for occlusion on a GPU, counted without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from operators import Operators, fake_gpu

from convis_widgets.core.attribution.incremental.incremental_forward import IncrementalForward
from convis_widgets.core.attribution.incremental.plan import Plan
from convis_widgets.core.attribution.incremental.span import Positions
from convis_widgets.core.network.network import Network
from convis_widgets.techniques.attribution.occlusion import occlusion


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "densenet121", "mobilenet_v2"])
def test_replayed_batch_uploads_once_and_reads_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = np.arange(0, 193, 16)
    with fake_gpu(monkeypatch):
        with torch.device("cuda"):
            module = torchvision.models.get_model(name, weights=None).eval()
            image, replacement = torch.rand(2, 1, 3, 224, 224)
        plan = Plan((224, 224), 32, edges, edges, torch.device("cuda"))
        passes = IncrementalForward(module, image, replacement, plan)
        for index in ([0, 1], [2, 3, 4]):
            with Operators() as recording:
                passes.run([Positions(np.array(index), np.array(index))])
            assert not recording.reads
        positions = [Positions(*np.nonzero(np.ones((13, 13)))), Positions(np.array([0, 0]), np.array([3, 4]))]
        passes.run(positions[1:])  # the references
        with Operators() as first:
            passes.run(positions)
        with Operators() as again:
            scores = passes.run(positions)
    assert scores.shape == (171, 1000)
    assert scores.device.type == "cuda"
    assert first.transfers == [("cpu", "cuda")], "the tables of the new group, in one copy"
    assert again.transfers == []
    assert not first.reads
    assert not again.reads
    layers = sum(not list(part.children()) for part in module.modules())
    assert sum(again.kernels.values()) <= 2 * 8 * layers, "for two groups"


def test_nothing_is_read_between_two_frames_of_occlusion(tiny: Network, image: np.ndarray) -> None:
    """Except the results, once per Frame; on the CPU, that is not an operator."""
    for seen in ({"equal"}, set()):  # once, two recordings are compared
        frames = occlusion(tiny, image, patch_size=4, stride=1)
        next(frames)
        while frames.gi_frame is not None:
            with Operators() as operators:
                next(frames, None)
            assert operators.reads.keys() <= seen
