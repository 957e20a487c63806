from __future__ import annotations

import pytest
import torch

from convis_widgets.core.synthesis.parameterization import Fourier, Pixels

ORIGIN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)


def random_image(height: int = 12, width: int = 10, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Pixels, Fourier])
@pytest.mark.parametrize(("height", "width"), [(12, 10), (11, 7), (1, 1), (5, 16)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_parameterization_starts_at_given_image(kind: type, height: int, width: int, channels: int) -> None:
    start, origin = random_image(height, width, channels), ORIGIN.mean(1, keepdim=True).expand(1, channels, 1, 1)
    param = kind(start, origin)
    assert param.values.requires_grad
    assert torch.allclose(param.image() + origin, start.clamp(1e-3, 1 - 1e-3) if kind is Fourier else start, atol=1e-4)


@pytest.mark.parametrize("kind", [Pixels, Fourier])
def test_parameterization_zero_is_mean_pixel(kind: type) -> None:
    param = kind(random_image(), ORIGIN)
    with torch.no_grad():
        param.values.zero_()
    assert torch.allclose(param.image(), torch.zeros(2, 3, 12, 10), atol=1e-6)


@pytest.mark.parametrize("kind", [Pixels, Fourier])
def test_parameterization_stays_in_valid_range(kind: type) -> None:
    param = kind(random_image(), ORIGIN)
    with torch.no_grad():
        param.values.add_(50 * torch.randn(param.values.shape, generator=torch.Generator().manual_seed(1)))
    param.project_()
    final = param.image() + ORIGIN
    assert final.min() >= -1e-6
    assert final.max() <= 1 + 1e-6
    assert final.std() > 0.2


def test_fourier_coefficient_matches_reference_wave() -> None:
    """For each coefficient, the logits of the pixels are a cosine with amplitude inversely proportional to its frequency."""
    size, origin = 16, torch.full((1, 1, 1, 1), 0.5)
    amplitudes = {}
    for row, column in ((0, 1), (0, 4), (3, 0), (2, 5)):
        param = Fourier(torch.full((1, 1, size, size), 0.5), origin)
        with torch.no_grad():
            param.values[0, 0, row, column, 0] = 1
            logits = (param.image() + 0.5).logit()[0, 0]
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        wave = torch.cos(2 * torch.pi * (row * y + column * x) / size)
        amplitudes[row, column] = float((logits * wave).sum() / wave.square().sum())
        assert torch.allclose(logits, amplitudes[row, column] * wave, atol=1e-5)
    assert amplitudes[0, 1] / amplitudes[0, 4] == pytest.approx(4, rel=1e-3)
    twice = 2 if (3, 0) else 1  # (3, 0) has both halves of the spectrum, (0, 4) one that stands for two
    assert amplitudes[0, 4] / amplitudes[3, 0] == pytest.approx(twice * 3 / 4, rel=1e-3)
    assert amplitudes[0, 4] / amplitudes[2, 5] == pytest.approx((29**0.5) / 4, rel=1e-3)


def test_fourier_noise_has_correlated_colors() -> None:
    param = Fourier(torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 1, 1), 0.5))
    with torch.no_grad():
        param.values.copy_(0.02 * torch.randn(param.values.shape, generator=torch.Generator().manual_seed(0)))
        colors = param.image()[0].flatten(1)
    correlation = torch.corrcoef(colors)
    assert (correlation > 0.7).all(), "natural images vary mostly in luminance"
