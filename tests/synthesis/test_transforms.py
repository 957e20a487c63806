from __future__ import annotations

import math

import pytest
import torch

from convis_widgets.core.synthesis.transforms import draw


def jitter(x: torch.Tensor, max_shift: int, generator: torch.Generator) -> torch.Tensor:
    return draw((x.shape[2], x.shape[3]), max_shift, 0, 0, generator)(x)


def random_rotate_scale(x: torch.Tensor, degrees: float, scale: float, generator: torch.Generator) -> torch.Tensor:
    return draw((x.shape[2], x.shape[3]), 0, degrees, scale, generator)(x)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_jitter_matches_reference_circular_shift() -> None:
    x = torch.rand(2, 3, 5, 6, generator=seeded())
    shifts = set()
    for seed in range(60):
        y = jitter(x, 2, seeded(seed))
        moves = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if all(y[0, 0, (i + down) % 5, (j + right) % 6] == x[0, 0, i, j] for i in range(5) for j in range(6))
        ]
        assert len(moves) == 1
        shifts |= {*moves}
    assert len(shifts) > 15
    assert max(max(map(abs, move)) for move in shifts) == 2
    assert jitter(x, 0, seeded()) is x


def test_jitter_gradient_is_at_original_pixel() -> None:
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    weights = torch.rand(1, 1, 5, 5, generator=seeded())
    (gradient,) = torch.autograd.grad((jitter(x, 2, seeded(1)) * jitter(weights, 2, seeded(1))).sum(), x)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize(("height", "width"), [(21, 21), (15, 27)])
def test_random_rotate_scale_matches_reference(height: int, width: int) -> None:
    """Source position of each pixel by trigonometry; bilinear interpolation, zero outside the image."""
    x = torch.rand(1, 1, height, width, generator=seeded())
    y = random_rotate_scale(x, 40, 0.3, seeded(3))
    angle, factor = (torch.rand(2, generator=seeded(3), dtype=torch.float64) * 2 - 1).tolist()
    angle, factor = math.radians(angle * 40), 1 / (1 + factor * 0.3)
    for i in range(height):
        for j in range(width):
            down, right = i - (height - 1) / 2, j - (width - 1) / 2
            at_j = factor * (math.cos(angle) * right - math.sin(angle) * down) + (width - 1) / 2
            at_i = factor * (math.sin(angle) * right + math.cos(angle) * down) + (height - 1) / 2
            expected = 0.0
            for a in (math.floor(at_i), math.floor(at_i) + 1):
                for b in (math.floor(at_j), math.floor(at_j) + 1):
                    if 0 <= a < height and 0 <= b < width:
                        expected += (1 - abs(at_i - a)) * (1 - abs(at_j - b)) * float(x[0, 0, a, b])
            assert float(y[0, 0, i, j]) == pytest.approx(expected, abs=1e-4)
    assert random_rotate_scale(x, 0, 0, seeded()) is x


def test_random_rotate_scale_respects_max_angle() -> None:
    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 38] = 1
    angles = []
    for seed in range(200):
        i, j = divmod(int(random_rotate_scale(x, 10, 0, seeded(seed)).argmax()), 41)
        angles.append(math.degrees(math.atan2(i - 20, j - 20)))
    assert 7 < max(angles) < 13
    assert -13 < min(angles) < -7
