from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convis_widgets.core.network.network import Network


class PooledBy(nn.Module):
    """Two convolutions with a pooling function between them."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv2(self.pool(self.conv1(x).relu())).relu().mean((2, 3)))


class PoolingOfOnesOwn(nn.MaxPool2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        PoolingOfOnesOwn(2),
        nn.AdaptiveMaxPool2d(7),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, kernel_size=(2, 2), return_indices=True)[0],
        lambda x: F.max_pool2d_with_indices(x, 2)[0],
        lambda x: F.adaptive_max_pool2d(x, 7),
        lambda x: F.max_pool3d(x, (1, 2, 2)),
        lambda x: torch.max_pool2d(x, 2),
        lambda x: torch.ops.aten.max_pool2d.default(x, [2, 2], [2, 2]),
        lambda x: torch.ops.aten.max_pool2d_with_indices(x, [2, 2], [2, 2])[0],
    ],
)
def test_with_average_pooling_replaces_every_form_of_max_pooling(pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
    net, reference = Network(PooledBy(pool), size=16), PooledBy(lambda x: F.avg_pool2d(x, 2))
    other = net.with_average_pooling()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (ours,), (theirs,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (other, reference))
    assert torch.equal(other(x), reference(x))
    assert torch.equal(ours, theirs)
    assert not torch.allclose(net(x), other(x))
    copies = [other.copy(), other.with_average_pooling()]
    if isinstance(pool, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)):  # local functions cannot be pickled
        copies.append(pickle.loads(pickle.dumps(other)))
    assert all(torch.equal(copy(x), reference(x)) for copy in copies)


def test_with_average_pooling_keeps_indices_for_unpooling() -> None:
    def unpooled(values: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: F.max_unpool2d(values(x), F.max_pool2d(x, 2, return_indices=True)[1], 2)

    net = Network(PooledBy(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)))
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = PooledBy(unpooled(lambda x: F.avg_pool2d(x, 2)))(x)
    assert torch.equal(net.with_average_pooling()(x), expected)
    assert not torch.allclose(net(x), expected)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, dilation=2), nn.FractionalMaxPool2d(2, output_size=8)])
def test_with_average_pooling_refuses_what_it_cannot_replace(pool: nn.Module, image: np.ndarray) -> None:
    net = Network(PooledBy(pool), size=16).with_average_pooling()
    with pytest.raises(ValueError, match=r'has no average equivalent; choose pooling="max"'):
        net(net.batch(image))
