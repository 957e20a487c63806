from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from convis_widgets.core.regularize import blurred, of_norm, without_small_contribution, without_small_norm


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("deviation", [0.3, 0.5, 1.0, 3.7])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 23), (3, 40)])
def test_gaussian_blur_matches_scipy(deviation: float, height: int, width: int) -> None:
    x = noise(2, 3, height, width)
    expected = gaussian_filter(x.double().numpy(), (0, 0, deviation, deviation))
    assert np.abs(blurred(x, deviation).numpy() - expected).max() < 1e-5


def test_gaussian_blur_keeps_mean_and_zero_sigma_is_identity() -> None:
    x = noise(1, 3, 12, 12)
    assert blurred(x, 0) is x
    assert torch.allclose(blurred(x, 2.0).mean((2, 3)), x.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_clip_small_norm_matches_reference(share: float) -> None:
    x = noise(2, 3, 5, 6)
    found = without_small_norm(x, share)
    for n in range(2):
        pixels = sorted((float((x[n, :, i, j] ** 2).sum()), i, j) for i in range(5) for j in range(6))
        gone = {(i, j) for _, i, j in pixels[: int(share * 30)]}
        for i in range(5):
            for j in range(6):
                assert torch.equal(found[n, :, i, j], torch.zeros(3) if (i, j) in gone else x[n, :, i, j])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_clip_small_contribution_matches_reference(share: float) -> None:
    x, gradient = noise(1, 3, 5, 6), noise(1, 3, 5, 6, seed=1)
    found = without_small_contribution(x, gradient, share)
    worth = {
        (i, j): abs(sum(float(gradient[0, c, i, j]) * -float(x[0, c, i, j]) for c in range(3)))
        for i in range(5)
        for j in range(6)
    }
    gone = sorted(worth, key=worth.get)[: int(share * 30)]
    for i, j in worth:
        assert torch.equal(found[0, :, i, j], torch.zeros(3) if (i, j) in gone else x[0, :, i, j])


def test_rescale_norm_is_applied_per_image() -> None:
    x = noise(3, 3, 5, 6) * torch.tensor([0.1, 1, 100]).view(3, 1, 1, 1)
    found = of_norm(x, 0.7)
    for n in range(3):
        length = sum(float(v) ** 2 for v in x[n].flatten()) ** 0.5
        assert np.abs(found[n].numpy() - x[n].numpy() * 0.7 / length).max() < 1e-6
        assert float(np.sqrt((found[n].double().numpy() ** 2).sum())) == pytest.approx(0.7, rel=1e-5)


def test_rescale_norm_of_zero_is_zero() -> None:
    assert torch.equal(of_norm(torch.zeros(2, 1, 3, 3), 2.0), torch.zeros(2, 1, 3, 3))
