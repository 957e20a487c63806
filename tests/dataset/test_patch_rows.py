"""Rows of patches: the right crop of the right image at the right position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.widgets.drawing.patch_rows import LABEL_WIDTH, PatchRows, fit_square, patch_box, render_rows

GRAY = 128


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def scan(tiny: Network, images: np.ndarray, tmp_path: Path) -> Scan:
    return run_scan(Scan(tiny, images, cache=tmp_path))


def run_scan(scan: Scan) -> Scan:
    Run(scan.frames()).run()
    return scan


def network(conv: nn.Conv2d, size: int = 16) -> Network:
    return Network(nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=size)


def network_with_biases(*biases: float, size: int = 16) -> Network:
    """A network with small weights, so that the biases decide which channels are active."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, len(biases), 3)
    with torch.no_grad():
        conv.weight.mul_(0.1)
        conv.bias.copy_(torch.tensor(biases))
    return network(conv, size)


def located_pixels(rows: PatchRows) -> dict[tuple[int, int | None], np.ndarray]:
    """`locate` evaluated at every pixel: (channel, patch) -> pixels (n, 2), row and column."""
    pixels: dict[Any, list[tuple[int, int]]] = {}
    for y in range(rows.image.shape[0]):
        for x in range(rows.image.shape[1]):
            location = rows.locate(x + 0.5, y + 0.5)
            if location is not None:
                pixels.setdefault(location, []).append((y, x))
    return {location: np.array(positions) for location, positions in pixels.items()}


def opaque_part(rows: PatchRows, pixels: np.ndarray) -> np.ndarray:
    """The opaque part of these pixels, as a rectangle (h, w, 3)."""
    y, x = pixels[rows.image[pixels[:, 0], pixels[:, 1], 3] == 255].T
    assert len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1), "opaque pixels form a rectangle"
    return rows.image[y.min() : y.max() + 1, x.min() : x.max() + 1, :3]


# -- positions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2])
def test_render_rows_matches_reference(columns: int, scan: Scan, images: np.ndarray) -> None:
    """Patches of a 3x3 convolution with stride 2, cropped and enlarged by hand."""
    rows, top = render_rows(scan, "conv1", range(1, 6), k=4, side=32, columns=columns), scan.top("conv1")
    where, sizes = located_pixels(rows), set()
    for channel in range(1, 6):
        assert (channel, None) in where
        for j in range(4):
            r, c = int(top.rows[channel, j]), int(top.cols[channel, j])
            up, left = max(0, 2 * r - 1), max(0, 2 * c - 1)
            patch = images[top.images[channel, j]][up : 2 * r + 2, left : 2 * c + 2]
            assert patch_box(scan, "conv1", top, channel, j) == (up, left, up + patch.shape[0], left + patch.shape[1])
            scale = 32 // max(patch.shape[:2])
            expected = np.full((32, 32, 3), GRAY)
            big = patch.repeat(scale, 0).repeat(scale, 1)
            y, x = (32 - big.shape[0]) // 2, (32 - big.shape[1]) // 2
            expected[y : y + big.shape[0], x : x + big.shape[1]] = big
            assert np.array_equal(opaque_part(rows, where[channel, j]), expected)
            sizes.add(patch.shape[:2])
    assert len(sizes) > 1, "patches at the border are cropped"


def test_render_rows_of_deeper_layer_uses_layer_box(scan: Scan, images: np.ndarray) -> None:
    rows, top = render_rows(scan, "conv2", range(8), k=9, side=28, columns=2), scan.top("conv2")
    where = located_pixels(rows)
    for channel in range(8):
        for j in range(9):
            up, left, bottom, right = scan.net.layers["conv2"].box((top.rows[channel, j], top.cols[channel, j]))
            patch = scan.image(int(top.images[channel, j]))[up:bottom, left:right]
            assert np.array_equal(patch, images[top.images[channel, j]][up:bottom, left:right])
            assert np.array_equal(opaque_part(rows, where[channel, j]), fit_square(patch, 28))


@pytest.mark.parametrize(("count", "columns"), [(8, 2), (7, 2), (3, 2), (1, 2), (8, 3), (7, 1)])
def test_locate_finds_every_channel_and_patch(count: int, columns: int, scan: Scan) -> None:
    rows = render_rows(scan, "conv2", range(8 - count, 8), k=3, side=20, columns=columns)
    where = located_pixels(rows)
    assert set(where) == {(channel, j) for channel in range(8 - count, 8) for j in (None, 0, 1, 2)}
    claimed = np.zeros(rows.image.shape[:2], bool)
    claimed[tuple(np.concatenate([*where.values()]).T)] = True
    assert claimed[rows.image[..., 3] > 0].all(), "every opaque pixel belongs to a channel or patch"
    for channel in range(8 - count, 8):
        for j in range(3):
            assert opaque_part(rows, where[channel, j]).shape == (20, 20, 3)
            if j:
                assert where[channel, j][:, 1].min() > where[channel, j - 1][:, 1].max()
            assert where[channel, j][:, 1].min() > where[channel, None][:, 1].min()


@pytest.mark.parametrize("point", [(-1, 5), (5, -1), (-0.5, -0.5), (1e6, 5), (5, 1e6)])
def test_locate_outside_image_is_none(point: tuple[float, float], scan: Scan) -> None:
    assert render_rows(scan, "conv2", range(8), k=3, side=20, columns=2).locate(*point) is None


def test_render_rows_fills_columns_top_to_bottom(scan: Scan) -> None:
    where = located_pixels(render_rows(scan, "conv2", range(5), k=2, side=20, columns=2))
    corners = [where[channel, 0].min(0) for channel in range(5)]
    assert [tuple(corner) for corner in corners] == sorted(map(tuple, corners), key=lambda corner: corner[::-1])
    assert len({corner[1] for corner in corners}) == 2
    assert corners[0][0] == corners[3][0]


def test_render_rows_leaves_missing_patches_empty(tiny: Network, images: np.ndarray, tmp_path: Path) -> None:
    scan = run_scan(Scan(tiny, images[:3], cache=tmp_path))
    few, many = (render_rows(scan, "conv2", range(8), k=k, side=20, columns=2) for k in (3, 7))
    where = located_pixels(many)
    for channel in range(8):
        assert [opaque_part(many, where[channel, j]).shape for j in range(3)] == [(20, 20, 3)] * 3
        for j in range(3, 7):
            assert (many.image[tuple(where[channel, j].T)] == 0).all()
    assert many.image.shape[1] > few.image.shape[1]


def test_render_rows_of_grayscale_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16, channels=1)
    digits = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    scan = run_scan(Scan(net, digits, cache=tmp_path))
    rows, top = render_rows(scan, "0", range(4), k=2, side=25, columns=1), scan.top("0")
    where = located_pixels(rows)
    live = np.setdiff1d(range(4), top.dead)
    assert len(live)
    for channel in live:
        r, c = top.rows[channel, 0], top.cols[channel, 0]
        expected = digits[top.images[channel, 0]][r : r + 5, c : c + 5].repeat(5, 0).repeat(5, 1)
        assert np.array_equal(opaque_part(rows, where[channel, 0]), np.repeat(expected[..., None], 3, 2))


# -- channels without patches --------------------------------------------------------------------------------------------


def row_without_number(rows: PatchRows, channel: int) -> np.ndarray:
    """The pixels of a row to the right of its channel number."""
    patches = [where for (other, j), where in located_pixels(rows).items() if other == channel and j is not None]
    pixels = np.concatenate(patches)
    return rows.image[pixels[:, 0], pixels[:, 1]]


def test_render_rows_writes_text_for_dead_channel(images: np.ndarray, tmp_path: Path) -> None:
    scan = run_scan(Scan(network_with_biases(1.0, -99.0, 1.0), images, cache=tmp_path))
    rows = render_rows(scan, "0", range(3), k=9, side=32, columns=1)
    assert scan.top("0").dead.tolist() == [1]
    note = row_without_number(rows, 1)
    assert 50 < (note[:, 3] > 0).sum() < 0.2 * len(note), "text instead of patches"
    assert (note[note[:, 3] > 0][:, :3] == GRAY).all(), "readable on black and on white"
    for channel in (0, 2):
        assert (row_without_number(rows, channel)[:, 3] == 255).mean() > 0.8


def test_render_rows_before_scan_marks_no_channel_dead(tiny: Network, images: np.ndarray, tmp_path: Path) -> None:
    rows = render_rows(Scan(tiny, images, cache=tmp_path), "conv1", range(6), k=9, side=32, columns=2)
    for channel in range(6):
        assert (row_without_number(rows, channel) == 0).all()


def test_render_rows_of_padding_only_position_is_gray(images: np.ndarray, tmp_path: Path) -> None:
    """In a padded 1x1 convolution border positions see only the bias, which may be the maximum."""
    conv = nn.Conv2d(3, 4, 1, padding=1)
    nn.init.constant_(conv.weight, -1.0)
    nn.init.constant_(conv.bias, 5.0)
    scan = run_scan(Scan(network(conv), images, cache=tmp_path))
    assert patch_box(scan, "0", scan.top("0"), 0, 0) == (0, 0, 0, 0)
    rows = render_rows(scan, "0", range(4), k=2, side=20, columns=1)
    assert (opaque_part(rows, located_pixels(rows)[0, 0]) == GRAY).all()


# -- the selected channel ------------------------------------------------------------------------------------------------


def test_box_surrounds_one_row(scan: Scan) -> None:
    rows = render_rows(scan, "conv2", range(8), k=3, side=20, columns=2)
    where = located_pixels(rows)
    for channel in (0, 3, 4, 7):
        top, left, bottom, right = rows.box(channel)
        patches = np.concatenate([where[channel, j] for j in range(3)])
        patches = patches[rows.image[patches[:, 0], patches[:, 1], 3] == 255]
        assert top <= patches[:, 0].min() < patches[:, 0].max() < bottom
        assert left < patches[:, 1].min() < patches[:, 1].max() < right
        for other in {*range(8)} - {channel}:
            pixels = np.concatenate([where[other, j] for j in range(3)])
            pixels = pixels[rows.image[pixels[:, 0], pixels[:, 1], 3] == 255]
            inside = (pixels >= (top - 2, left - 2)) & (pixels < (bottom + 2, right + 2))  # with the frame
            assert not inside.all(1).any()


def test_box_of_channel_of_other_page(scan: Scan) -> None:
    assert render_rows(scan, "conv2", range(4), k=3, side=20, columns=2).box(6) is None


# -- sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (64, 32), (20, 64), (128, 96)])
def test_fit_square_averages_large_image(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    step = max(shape) // 32
    height, width = shape[0] // step, shape[1] // step
    means = image.reshape(height, step, width, step, 3).mean((1, 3))
    small = fit_square(image, 32)
    y, x = (32 - height) // 2, (32 - width) // 2
    assert np.abs(small[y : y + height, x : x + width] - means).max() <= 1
    outside = np.ones((32, 32), bool)
    outside[y : y + height, x : x + width] = False
    assert (small[outside] == GRAY).all()


@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 5), (7, 7), (10, 1)])
def test_fit_square_enlarges_small_image_by_integer(shape: tuple[int, int]) -> None:
    image = np.arange(3 * shape[0] * shape[1], dtype=np.uint8).reshape(*shape, 3)
    colors, counts = np.unique(fit_square(image, 32).reshape(-1, 3), axis=0, return_counts=True)
    times = 32 // max(shape)
    count = {tuple(color): n for color, n in zip(colors.tolist(), counts.tolist(), strict=True)}
    count.pop((GRAY,) * 3, None)
    assert count == {tuple(color): times**2 for color in image.reshape(-1, 3).tolist()}


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (33, 31), (12, 12), (31, 32), (32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_square_fits_any_shape(shape: tuple[int, int], channels: int) -> None:
    square = fit_square(np.full((*shape, channels), 200, np.uint8), 32)
    assert (square.shape, square.dtype) == ((32, 32, 3), np.uint8)
    inside = (square == 200).all(2)
    assert inside.any(0).sum() == 32 or inside.any(1).sum() == 32 or max(shape) * (32 // max(shape)) < 32
    assert (square[~inside] == GRAY).all()


def test_fit_square_keeps_image_of_target_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(fit_square(image, 32), image)


# -- large layers --------------------------------------------------------------------------------------------------------


def test_render_rows_of_512_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)]
    conv = nn.Conv2d(3, 512, 9, stride=4)
    nn.init.constant_(conv.bias, 5.0)
    scan = run_scan(Scan(network(conv, 64), images, cache=tmp_path))
    assert not len(scan.top("0").dead)
    rows = render_rows(scan, "0", range(512), k=9, side=32, columns=2)
    assert rows.locate(LABEL_WIDTH + 5, 5) == (0, 0)
