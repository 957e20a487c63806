"""Patches in rows: the right piece of the right picture at the right place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convis_widgets.core import Network, Run, Scan
from convis_widgets.widgets.patches import LABEL, Rows, box_of, fitted, rows_of

GRAY = 128


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def scan(tiny: Network, pictures: np.ndarray, tmp_path: Path) -> Scan:
    return looked_at(Scan(tiny, pictures, cache=tmp_path))


def looked_at(scan: Scan) -> Scan:
    Run(scan.frames()).run()
    return scan


def network(conv: nn.Conv2d, size: int = 16) -> Network:
    return Network(nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=size)


def with_biases(*biases: float, size: int = 16) -> Network:
    """Nine pixels see nothing of the picture but a little; the biases decide."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, len(biases), 3)
    with torch.no_grad():
        conv.weight.mul_(0.1)
        conv.bias.copy_(torch.tensor(biases))
    return network(conv, size)


def places(rows: Rows) -> dict[tuple[int, int | None], np.ndarray]:
    """What `at` says of all pixels of the image: (channel, patch) -> the pixels (n, 2), row and column."""
    found: dict[Any, list[tuple[int, int]]] = {}
    for y in range(rows.image.shape[0]):
        for x in range(rows.image.shape[1]):
            there = rows.at(x + 0.5, y + 0.5)
            if there is not None:
                found.setdefault(there, []).append((y, x))
    return {there: np.array(pixels) for there, pixels in found.items()}


def painted(rows: Rows, pixels: np.ndarray) -> np.ndarray:
    """Of these pixels those in which a picture is, as a rectangle (h, w, 3), from the image."""
    y, x = pixels[rows.image[pixels[:, 0], pixels[:, 1], 3] == 255].T
    assert len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1), "they make a rectangle"
    return rows.image[y.min() : y.max() + 1, x.min() : x.max() + 1, :3]


# -- what stands where ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2])
def test_slow_twin_each_patch_is_what_its_position_sees_and_lies_where_at_says(
    columns: int, scan: Scan, pictures: np.ndarray
) -> None:
    """Those of a convolution of 3x3 with a stride of two, worked out by hand: every pixel ten times across and down."""
    rows, top = rows_of(scan, "conv1", range(1, 6), k=4, side=32, columns=columns), scan.top("conv1")
    where, sizes = places(rows), set()
    for channel in range(1, 6):
        assert (channel, None) in where
        for j in range(4):
            r, c = int(top.rows[channel, j]), int(top.cols[channel, j])
            up, left = max(0, 2 * r - 1), max(0, 2 * c - 1)
            seen = pictures[top.images[channel, j]][up : 2 * r + 2, left : 2 * c + 2]
            assert box_of(scan, "conv1", top, channel, j) == (up, left, up + seen.shape[0], left + seen.shape[1])
            scale = 32 // max(seen.shape[:2])
            expected = np.full((32, 32, 3), GRAY)
            big = seen.repeat(scale, 0).repeat(scale, 1)
            y, x = (32 - big.shape[0]) // 2, (32 - big.shape[1]) // 2
            expected[y : y + big.shape[0], x : x + big.shape[1]] = big
            assert np.array_equal(painted(rows, where[channel, j]), expected)
            sizes.add(seen.shape[:2])
    assert len(sizes) > 1, "some are cut by the border"


def test_deeper_patches_are_those_of_layer_box(scan: Scan, pictures: np.ndarray) -> None:
    rows, top = rows_of(scan, "conv2", range(8), k=9, side=28, columns=2), scan.top("conv2")
    where = places(rows)
    for channel in range(8):
        for j in range(9):
            up, left, bottom, right = scan.net.layers["conv2"].box((top.rows[channel, j], top.cols[channel, j]))
            seen = scan.view(int(top.images[channel, j]))[up:bottom, left:right]
            assert np.array_equal(seen, pictures[top.images[channel, j]][up:bottom, left:right])
            assert np.array_equal(painted(rows, where[channel, j]), fitted(seen, 28))


@pytest.mark.parametrize(("count", "columns"), [(8, 2), (7, 2), (3, 2), (1, 2), (8, 3), (7, 1)])
def test_at_gives_every_channel_and_patch_once_also_on_a_page_that_is_not_full(count: int, columns: int, scan: Scan) -> None:
    rows = rows_of(scan, "conv2", range(8 - count, 8), k=3, side=20, columns=columns)
    where = places(rows)
    assert set(where) == {(channel, j) for channel in range(8 - count, 8) for j in (None, 0, 1, 2)}
    claimed = np.zeros(rows.image.shape[:2], bool)
    claimed[tuple(np.concatenate([*where.values()]).T)] = True
    assert claimed[rows.image[..., 3] > 0].all(), "nothing is painted where nothing is said to be"
    for channel in range(8 - count, 8):
        for j in range(3):
            assert painted(rows, where[channel, j]).shape == (20, 20, 3)
            if j:
                assert where[channel, j][:, 1].min() > where[channel, j - 1][:, 1].max()
            assert where[channel, j][:, 1].min() > where[channel, None][:, 1].min()


@pytest.mark.parametrize("point", [(-1, 5), (5, -1), (-0.5, -0.5), (1e6, 5), (5, 1e6)])
def test_beside_the_image_there_is_nothing(point: tuple[float, float], scan: Scan) -> None:
    assert rows_of(scan, "conv2", range(8), k=3, side=20, columns=2).at(*point) is None


def test_channels_go_down_and_then_on_in_the_next_column(scan: Scan) -> None:
    where = places(rows_of(scan, "conv2", range(5), k=2, side=20, columns=2))
    corners = [where[channel, 0].min(0) for channel in range(5)]
    assert [tuple(corner) for corner in corners] == sorted(map(tuple, corners), key=lambda corner: corner[::-1])
    assert len({corner[1] for corner in corners}) == 2
    assert corners[0][0] == corners[3][0]


def test_fewer_than_k_leave_room(tiny: Network, pictures: np.ndarray, tmp_path: Path) -> None:
    scan = looked_at(Scan(tiny, pictures[:3], cache=tmp_path))
    few, many = (rows_of(scan, "conv2", range(8), k=k, side=20, columns=2) for k in (3, 7))
    where = places(many)
    for channel in range(8):
        assert [painted(many, where[channel, j]).shape for j in range(3)] == [(20, 20, 3)] * 3
        for j in range(3, 7):
            assert (many.image[tuple(where[channel, j].T)] == 0).all()
    assert many.image.shape[1] > few.image.shape[1]


def test_gray_pictures_are_gray_patches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16, channels=1)
    digits = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    scan = looked_at(Scan(net, digits, cache=tmp_path))
    rows, top = rows_of(scan, "0", range(4), k=2, side=25, columns=1), scan.top("0")
    where = places(rows)
    live = np.setdiff1d(range(4), top.dead)
    assert len(live)
    for channel in live:
        r, c = top.rows[channel, 0], top.cols[channel, 0]
        expected = digits[top.images[channel, 0]][r : r + 5, c : c + 5].repeat(5, 0).repeat(5, 1)
        assert np.array_equal(painted(rows, where[channel, 0]), np.repeat(expected[..., None], 3, 2))


# -- channels without patches --------------------------------------------------------------------------------------------


def beside_the_number(rows: Rows, channel: int) -> np.ndarray:
    """The pixels of a row behind its number."""
    pixels = np.concatenate([where for (one, j), where in places(rows).items() if one == channel and j is not None])
    return rows.image[pixels[:, 0], pixels[:, 1]]


def test_a_dead_channel_says_so_where_others_have_patches(pictures: np.ndarray, tmp_path: Path) -> None:
    scan = looked_at(Scan(with_biases(1.0, -99.0, 1.0), pictures, cache=tmp_path))
    rows = rows_of(scan, "0", range(3), k=9, side=32, columns=1)
    assert scan.top("0").dead.tolist() == [1]
    words = beside_the_number(rows, 1)
    assert 50 < (words[:, 3] > 0).sum() < 0.2 * len(words), "text and no pictures"
    assert (words[words[:, 3] > 0][:, :3] == GRAY).all(), "which can be read on black and on white"
    for channel in (0, 2):
        assert (beside_the_number(rows, channel)[:, 3] == 255).mean() > 0.8


def test_before_a_picture_was_looked_at_no_channel_is_said_to_be_never_active(
    tiny: Network, pictures: np.ndarray, tmp_path: Path
) -> None:
    rows = rows_of(Scan(tiny, pictures, cache=tmp_path), "conv1", range(6), k=9, side=32, columns=2)
    for channel in range(6):
        assert (beside_the_number(rows, channel) == 0).all()


def test_a_position_that_sees_nothing_but_padding_has_a_gray_patch(pictures: np.ndarray, tmp_path: Path) -> None:
    """Of a convolution of 1x1 with a border: at the border there is only its bias, which may be the largest."""
    conv = nn.Conv2d(3, 4, 1, padding=1)
    nn.init.constant_(conv.weight, -1.0)
    nn.init.constant_(conv.bias, 5.0)
    scan = looked_at(Scan(network(conv), pictures, cache=tmp_path))
    assert box_of(scan, "0", scan.top("0"), 0, 0) == (0, 0, 0, 0)
    rows = rows_of(scan, "0", range(4), k=2, side=20, columns=1)
    assert (painted(rows, places(rows)[0, 0]) == GRAY).all()


# -- the selected one ----------------------------------------------------------------------------------------------------


def test_a_frame_goes_around_the_row_of_a_channel_and_touches_no_other_patch(scan: Scan) -> None:
    rows = rows_of(scan, "conv2", range(8), k=3, side=20, columns=2)
    where = places(rows)
    for channel in (0, 3, 4, 7):
        before = rows.image.copy()
        changed = np.argwhere((rows.marked(channel) != rows.image).any(2))
        assert np.array_equal(rows.image, before)
        (top, left), (bottom, right) = changed.min(0), changed.max(0)
        assert top <= where[channel, 0][:, 0].min() <= where[channel, 0][:, 0].max() <= bottom
        assert left <= where[channel, None][:, 1].min() < where[channel, 2][:, 1].min() + 20 <= right
        others = np.concatenate([where[other, j] for other in range(8) if other != channel for j in range(3)])
        patches = {tuple(pixel) for pixel in others.tolist() if rows.image[*pixel, 3] == 255}
        assert not patches & {tuple(pixel) for pixel in changed.tolist()}


def test_a_channel_of_another_page_has_no_frame(scan: Scan) -> None:
    rows = rows_of(scan, "conv2", range(4), k=3, side=20, columns=2)
    assert np.array_equal(rows.marked(6), rows.image)


# -- sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (64, 32), (20, 64), (128, 96)])
def test_large_ones_become_means(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    step = max(shape) // 32
    height, width = shape[0] // step, shape[1] // step
    means = picture.reshape(height, step, width, step, 3).mean((1, 3))
    small = fitted(picture, 32)
    y, x = (32 - height) // 2, (32 - width) // 2
    assert np.abs(small[y : y + height, x : x + width] - means).max() <= 1
    outside = np.ones((32, 32), bool)
    outside[y : y + height, x : x + width] = False
    assert (small[outside] == GRAY).all()


@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 5), (7, 7), (10, 1)])
def test_of_small_ones_every_pixel_can_be_seen_and_all_are_of_one_size(shape: tuple[int, int]) -> None:
    picture = np.arange(3 * shape[0] * shape[1], dtype=np.uint8).reshape(*shape, 3)
    colors, counts = np.unique(fitted(picture, 32).reshape(-1, 3), axis=0, return_counts=True)
    times = 32 // max(shape)
    count = {tuple(color): n for color, n in zip(colors.tolist(), counts.tolist(), strict=True)}
    count.pop((GRAY,) * 3, None)
    assert count == {tuple(color): times**2 for color in picture.reshape(-1, 3).tolist()}


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (33, 31), (12, 12), (31, 32), (32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_whatever_its_size_it_fits(shape: tuple[int, int], channels: int) -> None:
    made = fitted(np.full((*shape, channels), 200, np.uint8), 32)
    assert (made.shape, made.dtype) == ((32, 32, 3), np.uint8)
    there = (made == 200).all(2)
    assert there.any(0).sum() == 32 or there.any(1).sum() == 32 or max(shape) * (32 // max(shape)) < 32
    assert (made[~there] == GRAY).all()


def test_of_its_own_size_it_is_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(fitted(picture, 32), picture)


# -- how long it takes ---------------------------------------------------------------------------------------------------


def test_composing_512_channels_of_pictures_in_memory_takes_no_half_second(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pictures = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)]
    conv = nn.Conv2d(3, 512, 9, stride=4)
    nn.init.constant_(conv.bias, 5.0)
    scan = looked_at(Scan(network(conv, 64), pictures, cache=tmp_path))
    assert not len(scan.top("0").dead)
    times = []
    for _ in range(4):
        begun = time.thread_time()  # of this thread alone: others may be at work on this machine
        rows = rows_of(scan, "0", range(512), k=9, side=32, columns=2)
        times.append(time.thread_time() - begun)
    assert rows.at(LABEL + 5, 5) == (0, 0)
    assert sorted(times[1:])[1] < 0.5, "the first one reads the pictures"
