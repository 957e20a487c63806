from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.attribution.gradient import input_gradient
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.network.unit import Unit, logit, resolve_unit


def numeric_gradient(
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


def double_network(module: nn.Module) -> Network:
    return Network(module.double(), size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize("unit", [logit(2), Unit("conv2", 5, (3, 3)), Unit("relu@2", 1), Unit("conv1", 0, (0, 7))])
def test_input_gradient_matches_finite_differences(tiny_module: nn.Module, image: np.ndarray, unit: Unit) -> None:
    net = double_network(tiny_module)

    def value(array: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            if not unit.layer:
                return net(as_batch(array))[0, unit.channel]
            with trace(net, [unit.layer]) as acts:
                net(as_batch(array))
            maps = acts[unit.layer][0, unit.channel]
            return maps[unit.position] if unit.position else maps.max()

    values, gradient = input_gradient(net, as_batch(image).double(), unit)
    ours = [float(gradient[0, c, y, x]) for y, x, c in SPOTS]
    expected = numeric_gradient(net, image, value, SPOTS)
    assert float(values[0]) == pytest.approx(float(value(image.astype(np.float64))))
    assert gradient.abs().max() > 1e-2
    assert np.allclose(ours, expected, rtol=1e-4, atol=1e-8)


def test_input_gradient_ignores_final_softmax(tiny_module: nn.Module, image: np.ndarray) -> None:
    plain = double_network(tiny_module)
    _, expected = input_gradient(plain, as_batch(image).double(), logit(1))
    for final in (nn.Softmax(1), nn.LogSoftmax(1)):
        net = double_network(nn.Sequential(tiny_module, final))
        _, gradient = input_gradient(net, as_batch(image).double(), logit(1))
        assert torch.allclose(gradient, expected)


def test_input_gradient_of_batch_matches_single_images(tiny: Network) -> None:
    batch = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    _, together = input_gradient(tiny, batch, logit(0))
    for i in range(3):
        _, alone = input_gradient(tiny, batch[i : i + 1], logit(0))
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_input_gradient_under_no_grad_leaves_no_gradients(tiny: Network, tiny_module: nn.Module, image: np.ndarray) -> None:
    with torch.no_grad():
        input_gradient(tiny, tiny.batch(image), logit(0))
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in (*tiny_module.parameters(), *tiny.module.parameters()))


def test_input_gradient_rejects_non_differentiable_path() -> None:
    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv((x > 0.5).float()).mean((2, 3))

    net = Network(Rounds(), size=8)
    with pytest.raises(ValueError, match="(?i)differentiable|depend"):
        input_gradient(net, torch.rand(1, 3, 8, 8), logit(0))


def test_resolve_unit_checks_unit_against_network(tiny: Network, image: np.ndarray) -> None:
    assert resolve_unit(tiny, unit=("conv2", 5, (1, 2))) == Unit("conv2", 5, (1, 2))
    assert resolve_unit(tiny, target="class 3") == logit(3)
    assert tiny.labels[resolve_unit(tiny, batch=tiny.batch(image)).channel] == tiny.predict(image)[0][0]
    for unit, message in (
        (("conv2", 8), r"conv2\b.*\b7\b.*\b8\b"),
        (("conv2", 0, (8, 0)), r"8x8.*\(8, 0\)"),
        (("conv22", 0), r"conv22.*\bconv2\b"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_unit(tiny, unit=unit)
    with pytest.raises(TypeError, match=r"\b7\b"):
        resolve_unit(tiny, unit=7)
    with pytest.raises(ValueError, match="target"):
        resolve_unit(tiny, unit=("conv2", 0), target=1)
