"""Incremental forward passes equal full passes in double precision, for every architecture and patch position."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import calibrate
from torch import nn
from torch.nn import functional as F

from convis_widgets.core.attribution.incremental.incremental_forward import IncrementalForward
from convis_widgets.core.attribution.incremental.plan import Plan
from convis_widgets.core.attribution.incremental.span import Positions
from convis_widgets.core.attribution.incremental.workload import Limits, _classes

# Positions by their index, in groups. The first two batches are recorded, unless that is impossible.
BATCHES = [[[0, 1, 2]], [[3, 4]], [[5]], [[6, 1], [0, 7, 8], [2]]]


def patch_positions(size: int, patch: int, count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Corners, borders and random positions."""
    rng = np.random.default_rng(patch)
    last = size - patch
    rows, cols = rng.integers(0, last + 1, (2, count))
    rows[:3], cols[:3] = (0, 0, last), (0, last, last)
    return rows, cols


def full_forward(
    module: Any, image: torch.Tensor, replacement: torch.Tensor, side: int, rows: np.ndarray, cols: np.ndarray
) -> Any:
    batch = image.repeat(len(rows), 1, 1, 1)
    for hidden, r, c in zip(batch, rows, cols, strict=True):
        hidden[:, r : r + side, c : c + side] = replacement[0, :, r : r + side, c : c + side]
    with torch.no_grad():
        return module(batch)


def check_incremental_forward(
    module: nn.Module, size: int, sides: tuple[int, ...] = (1, 6, 17), channels: int = 3, recordable: bool = True
) -> None:
    """Two images after each other, with the same plan."""
    torch.manual_seed(5)
    module = module.double().eval()
    for side in sides:
        rows, cols = patch_positions(size, side)
        plan = Plan((size, size), side, rows, cols, torch.device("cpu"))
        for _ in range(2 if side == sides[0] else 1):
            image, replacement = torch.rand(2, 1, channels, size, size, dtype=torch.double)
            expected = full_forward(module, image, replacement, side, rows, cols)
            with torch.no_grad():
                spread = (expected - module(image)).abs().max()
            assert spread > 1e-5, "the patches do not change the output"
            passes = IncrementalForward(module, image, replacement, plan)
            for groups in BATCHES:
                actual = passes.run([Positions(np.array(group), np.array(group)) for group in groups])
                difference = actual - expected[np.concatenate(groups)]
                assert difference.abs().max() < 1e-9 * max(1, float(spread))
        assert (plan.batches is not None) == recordable


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vgg11_bn", 64),
        ("squeezenet1_1", 64),
        ("alexnet", 96),
        ("resnet18", 64),
        ("resnext50_32x4d", 64),
        ("googlenet", 64),
        ("inception_v3", 96),
        ("densenet121", 64),
        ("mobilenet_v2", 64),
        ("mobilenet_v3_small", 64),
        ("shufflenet_v2_x0_5", 64),
        ("efficientnet_b0", 64),
        ("regnet_x_400mf", 64),
        ("convnext_tiny", 64),
    ],
)
def test_incremental_forward_of_torchvision_networks(name: str, size: int) -> None:
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    check_incremental_forward(
        calibrate(torchvision.models.get_model(name, weights=None, num_classes=20, **options), size), size
    )


def test_incremental_forward_of_vision_transformer() -> None:
    torch.manual_seed(0)
    options = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16, "num_classes": 5}
    vit = torchvision.models.VisionTransformer(image_size=32, patch_size=8, **options)
    nn.init.normal_(vit.heads.head.weight)
    check_incremental_forward(vit, 32)


class Fn(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x), inplace=True)
        y += self.b(x)
        return torch.cat([y.relu_(), x * 0.5], 1)


CASES = {
    "ceil mode and dilation": [nn.Conv2d(3, 6, 3, dilation=2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, 1)],
    "strides larger than kernels": [nn.Conv2d(3, 6, 2, stride=3), nn.AvgPool2d(1, 2)],
    "not square": [nn.Conv2d(3, 6, (1, 5), stride=(2, 1), padding=(0, 3)), nn.MaxPool2d((3, 1))],
    "average pools": [nn.Conv2d(3, 6, 3), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, ceil_mode=True)],
    "average pools that leave the padding out": [nn.Conv2d(3, 6, 3), nn.AvgPool2d(3, 2, 1, count_include_pad=False)],
    "residual, in place": [nn.Conv2d(3, 6, 3), Residual(), nn.Conv2d(12, 6, 3)],
    "response normalization": [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.LocalResponseNorm(5, alpha=1.0), nn.MaxPool2d(3, 2)],
    "batch normalization": [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Hardswish(inplace=True), nn.Dropout(0.5)],
    "statistics of the image": [nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6), nn.ReLU(), nn.GroupNorm(2, 6), nn.MaxPool2d(4)],
    "transposed and reflecting": [nn.ReflectionPad2d(2), nn.ConvTranspose2d(3, 6, 3, stride=2), nn.Upsample(scale_factor=2)],
    "turned and cut": [nn.Conv2d(3, 6, 3), Fn(lambda x: x.flip(2).transpose(2, 3)[:, :, 3:, ::2])],
    "adaptive": [nn.Conv2d(3, 6, 3), nn.AdaptiveMaxPool2d((5, 4))],
    "a pooled gate": [nn.Conv2d(3, 6, 3), Fn(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid())],
    "a constant map": [nn.Conv2d(3, 6, 3), Fn(lambda x: x * torch.linspace(0, 1, x.shape[3], dtype=x.dtype) + 1)],
    "a branch on values": [nn.Conv2d(3, 6, 3), Fn(lambda x: x * 2 if bool(x.max() > 1e9) else x + 1)],
    "a branch on an array": [nn.Conv2d(3, 6, 3), Fn(lambda x: x * 2 if x.flip(2).numpy().max() > 1e9 else x + 1)],
    "a new constant for boxes": [
        nn.Conv2d(3, 6, 3),
        Fn(lambda x: x * torch.tensor(0.7) + x.new_tensor([[[0.1]], [[0.2]]] * 3)),
    ],
    "a new constant": [nn.Conv2d(3, 6, 3), Fn(lambda x: x.flip(2) * torch.tensor([2.0, 3.0], dtype=x.dtype).sum())],
    "some of the channels": [nn.Conv2d(3, 6, 3), Fn(lambda x: torch.cat([x[:, 2:] * 2, x.narrow(1, 0, 2).relu()], 1))],
    "in place on a completed map": [nn.Conv2d(3, 6, 3), Fn(lambda x: x.flip(2) + x.relu_()), nn.Conv2d(6, 6, 3)],
    "written in the middle": [nn.Conv2d(3, 6, 3), Fn(lambda x: (x[:, :, 4:9].mul_(3), x)[1])],
}

NOT_RECORDABLE = {"a branch on values", "a branch on an array"}


@pytest.mark.parametrize("case", CASES)
def test_incremental_forward_of_operators(case: str) -> None:
    torch.manual_seed(1)
    parts = CASES[case]
    with torch.no_grad():
        width = nn.Sequential(*parts).eval()(torch.rand(1, 3, 30, 30)).shape[1]
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    check_incremental_forward(module, 30, recordable=case not in NOT_RECORDABLE)


def test_incremental_forward_with_patch_of_image_size() -> None:
    check_incremental_forward(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 4)), 16, (15, 16)
    )


def test_incremental_forward_of_gray_images() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 144, 10))
    check_incremental_forward(module, 28, (5,), channels=1)


def test_workload_counts_affected_region() -> None:
    """Multiply-adds of three convolutions, counted by hand."""
    module = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 5, 5, 3, padding=1) for i in range(3)], nn.AdaptiveAvgPool2d(1))
    plan = Plan((40, 40), 4, np.array([0, 10, 20]), np.array([0, 12, 20]), torch.device("cpu"))
    IncrementalForward(module, *torch.rand(2, 1, 3, 40, 40), plan).run([Positions(np.array([1, 2]), np.array([2, 1]))])
    edges = np.array([1, 2])
    assert plan.workload.per_image(edges, edges)[0] == 6 * 6 * 5 * 3 * 9 + 8 * 8 * 5 * 5 * 9 + 10 * 10 * 5 * 5 * 9
    clipped = plan.workload.per_image(np.array([0]), np.array([0]))[0]
    assert clipped == 5 * 5 * 5 * 3 * 9 + 6 * 6 * 5 * 5 * 9 + 7 * 7 * 5 * 5 * 9, "at the border"


def test_incremental_forward_leaves_module_unchanged() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 3)
    ).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = torch.rand(2, 1, 3, 16, 16)
    kept = images.clone()
    plan = Plan((16, 16), 4, np.array([0, 3, 5]), np.array([5, 6, 0]), torch.device("cpu"))
    for index in ([0, 1], [0, 1, 2], [2, 2, 1]):
        IncrementalForward(module, images[0], images[1], plan).run([Positions(np.array(index), np.array(index))])
    assert plan.batches is not None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(images, kept)


class Counter(nn.Module):
    """Its state changes with every pass, and its output with the state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.count = nn.Conv2d(3, 6, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.conv(x).mean((2, 3)) * self.count


@pytest.mark.parametrize("module", [Fn(lambda x: F.dropout(x, 0.5).mean((2, 3))), Counter()], ids=["random", "state"])
def test_code_that_differs_from_pass_to_pass_is_not_recorded(module: nn.Module) -> None:
    rows, cols = patch_positions(16, 5)
    plan = Plan((16, 16), 5, rows, cols, torch.device("cpu"))
    passes = IncrementalForward(module, *torch.rand(2, 1, 3, 16, 16), plan)
    results = [passes.run([Positions(np.array(index), np.array(index))]) for index in ([0, 1], [0, 1, 2], [0, 1, 2, 3])]
    assert plan.batches is None
    assert not torch.allclose(results[0], results[2][:2])


def test_plan_follows_weights_that_are_changed_in_place() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)).double().eval()
    image, replacement = torch.rand(2, 1, 3, 16, 16, dtype=torch.double)
    rows, cols = patch_positions(16, 5)
    plan = Plan((16, 16), 5, rows, cols, torch.device("cpu"))
    for index in ([0, 1], [0, 1, 2], [3, 4, 5], [7, 1]):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        expected = full_forward(module, image, replacement, 5, rows[index], cols[index])
        passes = IncrementalForward(module, image, replacement, plan)
        actual = passes.run([Positions(np.array(index), np.array(index))])
        assert torch.allclose(actual, expected, atol=1e-9)
    assert plan.batches is not None


def batches_of(limits: Limits) -> tuple[Plan, list[list[Positions]]]:
    """A 21 by 21 grid on the features of a small network, divided."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3 if i == 0 else 8, 8, 7, padding=3) for i in range(4)]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    edges = np.arange(0, 81, 4)
    plan = Plan((96, 96), 16, edges, edges, torch.device("cpu"))
    IncrementalForward(module, *torch.rand(2, 1, 3, 96, 96), plan).run([Positions(np.array([0, 9]), np.array([0, 9]))])
    return plan, plan.workload.divide(Positions(*np.nonzero(np.ones((21, 21)))), limits)


def cost(plan: Plan, groups: list[Positions]) -> float:
    return sum(len(group) * plan.workload.per_image(*group.distinct)[0] for group in groups)


@pytest.mark.parametrize("images", [1, 7, 1000])
@pytest.mark.parametrize("overhead", [0, 1e6, 1e12])
def test_workload_divides_positions_completely_and_within_limits(images: int, overhead: float) -> None:
    limits = Limits(1e8, values=1e6, images=images, batch_overhead=0, group_overhead=0, step_overhead=overhead)
    plan, batches = batches_of(limits)
    pairs = [(r, c) for batch in batches for group in batch for r, c in zip(group.rows, group.cols, strict=True)]
    assert sorted(pairs) == [(r, c) for r in range(21) for c in range(21)]
    assert max(sum(map(len, batch)) for batch in batches) <= images
    budget = max(1e8, 10 * overhead)
    assert all(len(batch[0]) == 1 or cost(plan, batch) <= 1.2 * budget for batch in batches)


def test_classes_are_the_best_ones() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        costs, count = rng.integers(1, 9, rng.integers(1, 7)).astype(float), int(rng.integers(1, 5))

        def total(labels: Any, costs: np.ndarray = costs) -> float:
            parts = (costs[np.array(labels) == k] for k in set(labels))
            return sum(len(part) * part.max() for part in parts)

        found = _classes(costs, count).tolist()
        assert len(set(found)) <= count
        assert total(found) == min(map(total, itertools.product(range(count), repeat=len(costs))))


def test_workload_groups_positions_near_the_border_where_that_pays() -> None:
    limits = [Limits(1e12, 1e9, 1000, batch_overhead=0, group_overhead=0, step_overhead=overhead) for overhead in (0, 1e12)]
    (plan, cheap), (_, expensive) = (batches_of(limit) for limit in limits)
    assert len(expensive) == 1
    assert len(expensive[0]) == 1
    assert sum(cost(plan, batch) for batch in cheap) < 0.92 * cost(plan, expensive[0])
