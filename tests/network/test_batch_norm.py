"""Gradients behind normalization layers, compared with finite differences in double precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convis_widgets import Network, Run, gradient_ascent, saliency


class Hybrid(nn.Module):
    """Convolutions and tokens: normalization layers see, and get gradients of, tensors whose channels are not contiguous."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm1, self.fc = nn.Conv2d(3, 6, 3, padding=1), norm, nn.Linear(6, 6)
        self.norm2, self.out = copy.deepcopy(norm), nn.Linear(6, 4)
        for part in (self.norm1, self.norm2):
            nn.init.uniform_(part.weight, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm1(self.conv(x)).flatten(2).transpose(1, 2)
        tokens = self.fc(tokens.tanh()).tanh()
        maps = self.norm2(tokens.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))).tanh()
        return self.out((maps * torch.linspace(0, 1, x.shape[3]).to(x)).mean((2, 3)))


class Function(nn.BatchNorm2d):
    """Batch normalization by a function call with keywords."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            input=x, running_mean=self.running_mean, running_var=self.running_var, weight=self.weight, bias=self.bias
        )


@pytest.mark.parametrize("norm", [Function(6), nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True), nn.SyncBatchNorm(6)])
def test_gradient_of_one_image_behind_normalization(norm: nn.Module) -> None:
    module = Hybrid(norm).eval()
    image = np.random.default_rng(0).random((6, 5, 3), np.float32)
    gradient = next(saliency(Network(module, size=(6, 5)), image, target=1)).arrays["gradient"]
    double, batch = copy.deepcopy(module).double(), torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = np.zeros_like(gradient)
    with torch.no_grad():
        for i, j, c in np.ndindex(expected.shape):
            change = torch.zeros_like(batch)
            change[0, c, i, j] = 1e-5
            expected[i, j, c] = float((double(batch + change) - double(batch - change))[0, 1]) / 2e-5
    assert np.abs(gradient - expected).max() < 1e-5 * np.abs(expected).max()


def test_ascent_raises_the_score_behind_normalization() -> None:
    net = Network(Hybrid(nn.BatchNorm2d(6)), size=16)
    frames = list(gradient_ascent(net, target=1, preset="simonyan", iterations=20, l2=0, log_prob_weight=0))
    assert frames[-1].scalars["logit"] > frames[0].scalars["logit"]
    assert Run(saliency(net, frames[-1].image)).run().heat.any()
