"""Token grids: a token's place in the activation maps is that of its patch in the image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace

D, SIDE, PATCH = 8, 32, 4  # 8x8 patches


class Mixer(nn.Module):
    """Attention and a linear layer, both with a residual path; attention is weak, so a patch changes its own token most."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.project, self.linear = (
            nn.LayerNorm(D),
            nn.Linear(D, 3 * D),
            nn.Linear(D, D),
            nn.Linear(D, D),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        weights = (q @ k.transpose(-2, -1) / D**0.5).softmax(-1)
        x = x + 0.05 * self.project(weights @ v)
        return x + 0.1 * self.linear(x).relu()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.again, self.fc = nn.Conv2d(3, D, PATCH, PATCH), Mixer(), Mixer(), nn.Linear(D, 4)
        self.extra = nn.Parameter(torch.randn(1, 3, D))
        self.position = nn.Parameter(torch.randn(1, 67, D))
        self.small, self.merge = nn.Conv2d(3, D, 2 * PATCH, 2 * PATCH), nn.Conv2d(D, D, 2, 2)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)


class Surrounded(Base):
    """A class token in front, two registers at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = torch.cat(
            [self.extra[:, :1].expand(len(x), -1, -1), self.tokens(x), self.extra[:, 1:].expand(len(x), -1, -1)], 1
        )
        return self.fc(self.again(self.mix(t + self.position))[:, 0])


class Windows(Base):
    """Tokens in 4x4 windows, one after the other, and back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x).permute(0, 2, 3, 1)
        windows = y.reshape(-1, 2, 4, 2, 4, D).transpose(2, 3).reshape(-1, 64, D)
        y = self.mix(windows).reshape(-1, 2, 2, 4, 4, D).transpose(2, 3).reshape(-1, 8, 8, D)
        return self.fc(self.again(y.flatten(1, 2)).mean(1))


class Shifted(Base):
    """Rows rolled, tokens reversed, in a dimension of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x).roll((1, 2), (2, 3)).flatten(2).transpose(1, 2).flip(1)[:, None]
        return self.fc(self.again(self.mix(y)).mean((1, 2)))


class Coarse(Base):
    """Another patch embedding after the first one, and tokens that are merged."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine, coarse = self.tokens(x), self.small(x).flatten(2).transpose(1, 2)
        fine = self.mix(fine)
        merged = self.merge(fine.transpose(1, 2).unflatten(2, (8, 8))).flatten(2).transpose(1, 2)
        return self.fc(self.again(merged + coarse).mean(1))


class Both(Base):
    """Tokens of two grids in one sequence: there is no grid."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.mix(torch.cat([self.tokens(x), self.small(x).flatten(2).transpose(1, 2)], 1)).mean(1))


class ChannelsFirst(Base):
    """Tokens as the last dimension, attention between channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mix(self.tokens(x)).transpose(1, 2)
        y = y + 0.1 * (y @ y.transpose(1, 2)).softmax(-1) @ y
        return self.fc(self.again(y.transpose(1, 2)).mean(1))


class Resampled(Base):
    """Bilinear resizing, average pooling and padding between tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mix(self.tokens(x)).transpose(1, 2).unflatten(2, (8, 8))
        y = nn.functional.avg_pool2d(nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear"), 2)
        return self.fc(self.again(y.flatten(2).transpose(1, 2)).mean(1))


GRIDS: dict[Callable[[], nn.Module], tuple[tuple[int, int] | None, tuple[int, int] | None]] = {
    Surrounded: ((8, 8), (8, 8)),
    Windows: ((8, 8), (8, 8)),
    Coarse: ((8, 8), (4, 4)),
    Both: (None, None),
    ChannelsFirst: ((8, 8), (8, 8)),
    Resampled: ((8, 8), (8, 8)),
}


def changed_places(net: Network, row: int, col: int) -> dict[str, tuple[int, int]]:
    """Where the token map of each layer changes most, as a fraction of the grid in eighths, if a patch of the image does."""
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[:, :, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH] = torch.tensor([1.0, 0.0, 1.0])[
        :, None, None
    ]
    # the output of attention alone depends on all patches alike
    names = [layer.name for layer in net.layers if layer.is_spatial and "project" not in layer.name]
    maps = []
    for batch in (image, other):
        with torch.no_grad(), trace(net, names) as acts:
            net(batch)
        maps.append({name: net.as_maps(name, acts[name]) for name in names})
    places = {}
    for name in names:
        change = (maps[0][name] - maps[1][name]).abs().sum((0, 1))
        i, j = divmod(int(change.argmax()), change.shape[1])
        places[name] = i * 8 // change.shape[0], j * 8 // change.shape[1]
    return places


@pytest.mark.parametrize("make", GRIDS)
def test_tokens_are_at_their_patches(make: Callable[[], nn.Module]) -> None:
    net = Network(make(), size=SIDE)
    for name, grid in zip(("mix.linear", "again.linear"), GRIDS[make], strict=True):
        if name in net.layers:
            assert (net.layers[name].map_shape or (0, None, None))[1:] == (grid or (None, None)), name
    for row, col in ((1, 6), (5, 2), (7, 7)):
        places = changed_places(net, row, col)
        assert places
        for name, (i, j) in places.items():
            steps = 8 // net.layers[name].map_shape[1]
            assert (i, j) == (row // steps * steps, col // steps * steps), name


def test_rolled_and_reversed_tokens_are_at_their_patches() -> None:
    """The roll moves the last rows to the front; they are shown where they come from."""
    net = Network(Shifted(), size=SIDE)
    assert net.layers["again"].map_shape == (D, 8, 8)
    for row, col in ((1, 5), (6, 3), (7, 7)):
        places = changed_places(net, row, col)
        assert {places[name] for name in ("mix.norm", "mix", "again.linear", "again")} == {(row, col)}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}),
        ("cait_xxs24_224", {"img_size": 64, "depth": 2}),
        ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}),
        ("tnt_s_patch16_224", {"img_size": 64, "depth": 2}),
        ("crossvit_tiny_240", {}),
        ("coat_lite_tiny", {"img_size": 64}),
        ("pvt_v2_b0", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (2, 2)}),
        ("convnext_atto", {}),
        ("resnet18", {}),
    ],
)
def test_grad_cam_of_timm_network_uses_last_layer_whose_positions_matter(name: str, kwargs: dict[str, object]) -> None:
    timm = pytest.importorskip("timm")
    from convis_widgets.core.attribution.cam import resolve_cam_layer
    from convis_widgets.core.network.unit import logit
    from convis_widgets.techniques import grad_cam, score_cam

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, num_classes=5, **kwargs).eval()
    net = Network(module, size=kwargs.get("img_size"))
    image = np.random.default_rng(0).random((*net.transform.size, 3)).astype(np.float32)
    chosen = resolve_cam_layer(net, logit(2))
    frame = next(grad_cam(net, image, target=2))
    assert frame.arrays["weights"].any()
    assert frame.arrays["coarse"].shape == chosen.map_shape[1:]
    later = [layer for layer in net.layers if layer.is_spatial and layer.map_shape[0] > 1]
    later = later[[layer.name for layer in later].index(chosen.name) + 1 :]
    for layer in later[:12]:
        if "Pool" not in layer.kind:
            try:
                weights = next(grad_cam(net, image, target=2, layer=layer.name)).arrays["weights"]
            except ValueError as error:  # not differentiable with respect to it
                depends = "depend" not in str(error)
            else:
                depends = bool(weights.any())
            assert not depends, layer.name
    assert list(score_cam(net, image, target=2, channels=2))[-1].arrays["coarse"].shape == frame.arrays["coarse"].shape
