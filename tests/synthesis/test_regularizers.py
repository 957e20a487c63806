from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from convis_widgets.core.network.images import gaussian_blur
from convis_widgets.core.synthesis.regularizers import clip_small_contribution, clip_small_norm, rescale_norm


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 3.7])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 23), (3, 40)])
def test_gaussian_blur_matches_scipy(sigma: float, height: int, width: int) -> None:
    x = noise(2, 3, height, width)
    expected = gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma))
    assert np.abs(gaussian_blur(x, sigma).numpy() - expected).max() < 1e-5


def test_gaussian_blur_keeps_mean_and_zero_sigma_is_identity() -> None:
    x = noise(1, 3, 12, 12)
    assert gaussian_blur(x, 0) is x
    assert torch.allclose(gaussian_blur(x, 2.0).mean((2, 3)), x.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.99])
def test_clip_small_norm_matches_reference(fraction: float) -> None:
    x = noise(2, 3, 5, 6)
    result = clip_small_norm(x, fraction)
    for n in range(2):
        pixels = sorted((float((x[n, :, i, j] ** 2).sum()), i, j) for i in range(5) for j in range(6))
        clipped = {(i, j) for _, i, j in pixels[: int(fraction * 30)]}
        for i in range(5):
            for j in range(6):
                assert torch.equal(result[n, :, i, j], torch.zeros(3) if (i, j) in clipped else x[n, :, i, j])


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
def test_clip_small_contribution_matches_reference(fraction: float) -> None:
    x, gradient = noise(1, 3, 5, 6), noise(1, 3, 5, 6, seed=1)
    result = clip_small_contribution(x, gradient, fraction)
    contributions = {
        (i, j): abs(sum(float(gradient[0, c, i, j]) * -float(x[0, c, i, j]) for c in range(3)))
        for i in range(5)
        for j in range(6)
    }
    clipped = sorted(contributions, key=contributions.get)[: int(fraction * 30)]
    for i, j in contributions:
        assert torch.equal(result[0, :, i, j], torch.zeros(3) if (i, j) in clipped else x[0, :, i, j])


def test_rescale_norm_is_applied_per_image() -> None:
    x = noise(3, 3, 5, 6) * torch.tensor([0.1, 1, 100]).view(3, 1, 1, 1)
    result = rescale_norm(x, 0.7)
    for n in range(3):
        length = sum(float(v) ** 2 for v in x[n].flatten()) ** 0.5
        assert np.abs(result[n].numpy() - x[n].numpy() * 0.7 / length).max() < 1e-6
        assert float(np.sqrt((result[n].double().numpy() ** 2).sum())) == pytest.approx(0.7, rel=1e-5)


def test_rescale_norm_of_zero_is_zero() -> None:
    assert torch.equal(rescale_norm(torch.zeros(2, 1, 3, 3), 2.0), torch.zeros(2, 1, 3, 3))
