"""Incremental forward passes equal full passes in double precision, for every architecture and patch position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import calibrate
from torch import nn
from torch.nn import functional as F

from convis_widgets.core.attribution.incremental_forward import IncrementalForward


def patch_positions(size: int, patch: int, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Corners, borders and random positions."""
    rng = np.random.default_rng(patch)
    last = size - patch
    rows, cols = rng.integers(0, last + 1, (2, count))
    rows[:3], cols[:3] = (0, 0, last), (0, last, last)
    return rows, cols


def full_forward(module: nn.Module, image: torch.Tensor, patches: torch.Tensor, rows: np.ndarray, cols: np.ndarray) -> Any:
    batch = image.repeat(len(rows), 1, 1, 1)
    for hidden, patch, r, c in zip(batch, patches, rows, cols, strict=True):
        hidden[:, r : r + patch.shape[1], c : c + patch.shape[2]] = patch
    with torch.no_grad():
        return module(batch)


def check_incremental_forward(
    module: nn.Module, size: int, sides: tuple[int, ...] = (1, 6, 17), channels: int = 3
) -> IncrementalForward:
    torch.manual_seed(5)
    module = module.double().eval()
    image = torch.rand(1, channels, size, size, dtype=torch.double)
    passes = IncrementalForward(module, image)
    for side in sides:
        rows, cols = patch_positions(size, side)
        patches = torch.rand(len(rows), channels, side, side, dtype=torch.double)
        expected = full_forward(module, image, patches, rows, cols)
        spread = (expected.max(0).values - expected.min(0).values).max()
        assert spread > 1e-5, "the patches do not change the output"
        assert (passes.run(patches, rows, cols) - expected).abs().max() < 1e-9 * max(1, float(spread))
    return passes


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
    "some of the channels": [nn.Conv2d(3, 6, 3), Fn(lambda x: torch.cat([x[:, 2:] * 2, x.narrow(1, 0, 2).relu()], 1))],
    "written in the middle": [nn.Conv2d(3, 6, 3), Fn(lambda x: (x[:, :, 4:9].mul_(3), x)[1])],
}


@pytest.mark.parametrize("case", CASES)
def test_incremental_forward_of_operators(case: str) -> None:
    torch.manual_seed(1)
    parts = CASES[case]
    with torch.no_grad():
        width = nn.Sequential(*parts).eval()(torch.rand(1, 3, 30, 30)).shape[1]
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    check_incremental_forward(module, 30)


def test_incremental_forward_with_patch_of_image_size() -> None:
    check_incremental_forward(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 49, 4)), 16, (15, 16)
    )


def test_incremental_forward_of_gray_images() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 144, 10))
    check_incremental_forward(module, 28, (5,), channels=1)


def test_incremental_forward_computes_only_affected_region() -> None:
    """Multiply-adds of three convolutions, counted by hand."""
    module = nn.Sequential(*[nn.Conv2d(3 if i == 0 else 5, 5, 3, padding=1) for i in range(3)], nn.AdaptiveAvgPool2d(1))
    passes = IncrementalForward(module, torch.rand(1, 3, 40, 40))
    passes.run(torch.rand(2, 3, 4, 4), np.array([10, 20]), np.array([20, 12]))
    assert passes.work == 6 * 6 * 5 * 3 * 9 + 8 * 8 * 5 * 5 * 9 + 10 * 10 * 5 * 5 * 9
    passes.run(torch.rand(1, 3, 4, 4), np.array([0]), np.array([0]))
    assert passes.work == 5 * 5 * 5 * 3 * 9 + 6 * 6 * 5 * 5 * 9 + 7 * 7 * 5 * 5 * 9, "clipped at the border"


def test_incremental_forward_leaves_module_unchanged() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 3)
    ).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    image = torch.rand(1, 3, 16, 16)
    kept = image.clone()
    IncrementalForward(module, image).run(torch.rand(2, 3, 4, 4), np.array([0, 3]), np.array([5, 6]))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(image, kept)
