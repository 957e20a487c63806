from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core import Network, Unit, input_gradient, logit, select, trace


def numeric(
    net: Network, image: np.ndarray, value: object, spots: list[tuple[int, int, int]], h: float = 1e-3
) -> list[float]:
    """Central differences of value(batch) at (row, column, channel), in double precision."""
    slopes = []
    for spot in spots:
        up, down = image.astype(np.float64), image.astype(np.float64)
        up[spot] += h
        down[spot] -= h
        slopes.append(float(value(up) - value(down)) / (2 * h))
    return slopes


SPOTS = [(3, 4, 0), (8, 8, 1), (12, 5, 2), (0, 15, 1)]


def double(module: nn.Module) -> Network:
    return Network(module.double(), size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize("of", [logit(2), Unit("conv2", 5, (3, 3)), Unit("relu@2", 1), Unit("conv1", 0, (0, 7))])
def test_it_is_the_slope_of_the_unit(tiny_module: nn.Module, picture: np.ndarray, of: Unit) -> None:
    net = double(tiny_module)

    def value(image: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            if not of.layer:
                return net(as_batch(image))[0, of.channel]
            with trace(net, [of.layer]) as acts:
                net(as_batch(image))
            maps = acts[of.layer][0, of.channel]
            return maps[of.position] if of.position else maps.max()

    values, gradient = input_gradient(net, as_batch(picture).double(), of)
    found = [float(gradient[0, c, y, x]) for y, x, c in SPOTS]
    expected = numeric(net, picture, value, SPOTS)
    assert float(values[0]) == pytest.approx(float(value(picture.astype(np.float64))))
    assert gradient.abs().max() > 1e-2
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-8)


def test_with_softmax_at_the_end_it_is_still_the_gradient_of_the_score(tiny_module: nn.Module, picture: np.ndarray) -> None:
    plain = double(tiny_module)
    _, expected = input_gradient(plain, as_batch(picture).double(), logit(1))
    for final in (nn.Softmax(1), nn.LogSoftmax(1)):
        net = double(nn.Sequential(tiny_module, final))
        _, gradient = input_gradient(net, as_batch(picture).double(), logit(1))
        assert torch.allclose(gradient, expected)


def test_each_picture_of_a_batch_has_its_own(tiny: Network) -> None:
    batch = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    _, together = input_gradient(tiny, batch, logit(0))
    for i in range(3):
        _, alone = input_gradient(tiny, batch[i : i + 1], logit(0))
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_it_works_under_no_grad_and_leaves_no_trace(tiny: Network, tiny_module: nn.Module, picture: np.ndarray) -> None:
    with torch.no_grad():
        input_gradient(tiny, tiny.batch(picture), logit(0))
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in (*tiny_module.parameters(), *tiny.module.parameters()))


def test_a_path_that_cannot_be_differentiated_is_named() -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv((x > 0.5).float()).mean((2, 3))

    net = Network(Rounds(), size=8)
    with pytest.raises(ValueError, match="does not depend on the picture by a differentiable path"):
        input_gradient(net, torch.rand(1, 3, 8, 8), logit(0))


def test_units_are_checked_against_the_network(tiny: Network, picture: np.ndarray) -> None:
    assert select(tiny, of=("conv2", 5, (1, 2))) == Unit("conv2", 5, (1, 2))
    assert select(tiny, target="class 3") == logit(3)
    assert tiny.labels[select(tiny, batch=tiny.batch(picture)).channel] == tiny.predict(picture)[0][0]
    for of, message in (
        (("conv2", 8), "channels 0 to 7, not 8"),
        (("conv2", 0, (8, 0)), r"8x8 positions, \(8, 0\) is not one"),
        (("conv22", 0), "no layer 'conv22'; nearest: conv2"),
    ):
        with pytest.raises(ValueError, match=message):
            select(tiny, of=of)
    with pytest.raises(TypeError, match="names no unit; write"):
        select(tiny, of=7)
    with pytest.raises(ValueError, match="not both"):
        select(tiny, of=("conv2", 0), target=1)
