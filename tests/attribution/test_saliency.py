from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.saliency import saliency


def test_saliency_matches_reference_on_single_convolution(image: np.ndarray) -> None:
    """With a single convolution the gradient has a closed form: the flipped kernel wherever the ReLU is active."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    std = np.array([0.2, 0.25, 0.5])
    net = Network(module, size=16, mean=(0.5, 0.5, 0.5), std=std)
    frame = Run(saliency(net, image, target=1)).run()
    x = (image - 0.5) / std
    weight, bias = module[0].weight.detach().numpy(), module[0].bias.detach().numpy()
    reference = np.zeros((16, 16, 3))
    for i in range(14):
        for j in range(14):
            if (x[i : i + 3, j : j + 3].transpose(2, 0, 1) * weight[1]).sum() + bias[1] > 0:
                reference[i : i + 3, j : j + 3] += weight[1].transpose(1, 2, 0) / (14 * 14) / std
    assert np.abs(reference).max() > 1e-3
    assert np.allclose(frame.arrays["gradient"], reference, atol=1e-6)
    assert np.allclose(frame.heat, np.abs(reference).max(2), atol=1e-6)


def test_saliency_matches_captum(tiny: Network, image: np.ndarray) -> None:
    from captum.attr import Saliency

    batch = tiny.batch(image)
    theirs = Saliency(tiny.module).attribute(tiny.transform.normalize(batch).requires_grad_(), target=2, abs=False)
    theirs = theirs[0].permute(1, 2, 0).numpy() / np.array(tiny.transform.std, np.float32)
    ours = Run(saliency(tiny, image, target=2)).run().arrays["gradient"]
    assert np.abs(theirs).max() > 1e-2
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_saliency_of_unit_is_confined_to_its_receptive_field(tiny: Network, image: np.ndarray) -> None:
    frame = Run(saliency(tiny, image, unit=("conv1", 2, (4, 4)))).run()
    top, left, bottom, right = tiny.layers["conv1"].box((4, 4))
    outside = frame.heat.copy()
    outside[top:bottom, left:right] = 0
    assert outside.max() == 0
    assert frame.heat.max() > 0
    with pytest.raises(ValueError, match=r"target.*\bunit\b"):
        Run(saliency(tiny, image, target=1, unit=("conv1", 0))).run()
