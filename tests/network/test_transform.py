"""Images without cropping, and resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from convis_widgets.core.network.images import resize_batch, resize_image
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.transform import Transform
from convis_widgets.core.synthesis.pyramid import pyramid_sizes

PLAIN = Transform((32, 48), 3)


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("width", "height", "side", "expected"),
    [
        (200, 100, None, (24, 48)),
        (100, 200, None, (48, 24)),
        (100, 100, 64, (64, 64)),
        (300, 200, 90, (60, 90)),
        (200, 300, 90, (90, 60)),
        (10, 20, 100, (100, 50)),
        (900, 3, 30, (1, 30)),
    ],
)
def test_uncropped_image_resizes_longer_side_to_given_or_network_size(
    width: int, height: int, side: int | None, expected: tuple[int, int]
) -> None:
    assert PLAIN.uncropped_image(random_image(width, height), side).shape == (*expected, 3)


def test_uncropped_image_does_not_crop() -> None:
    marked = Image.new("RGB", (120, 60), "black")
    for corner in ((0, 0), (110, 0), (0, 50), (110, 50)):
        marked.paste("white", (*corner, corner[0] + 10, corner[1] + 10))
    image = Transform((24, 24), 3, resize=28).uncropped_image(marked)
    assert image.shape == (12, 24, 3)
    assert min(image[0, 0, 0], image[0, -1, 0], image[-1, 0, 0], image[-1, -1, 0]) > 0.9
    assert image[6, 12, 0] < 0.01


def test_uncropped_image_keeps_array_unless_side_is_given() -> None:
    array = np.random.default_rng(0).random((21, 30, 3)).astype(np.float32)
    assert np.array_equal(PLAIN.uncropped_image(array), array)
    assert np.array_equal(PLAIN.uncropped_image(array, 30), array)
    assert PLAIN.uncropped_image(array, 60).shape == (42, 60, 3)
    assert PLAIN.uncropped_image(array, 10).shape == (7, 10, 3)
    assert PLAIN.uncropped_image(array[:, :, :1], 10).shape == (7, 10, 3), "gray becomes color"


def test_whole_is_gray_for_gray_network(tiny_gray: Network) -> None:
    assert tiny_gray.uncropped_batch(random_image(40, 20)).shape == (1, 1, 8, 16)
    assert tiny_gray.uncropped_batch(np.zeros((5, 9, 3), np.float32)).shape == (1, 1, 5, 9)


def test_uncropped_batch_accepts_one_image(tiny: Network, image: np.ndarray) -> None:
    batch = tiny.uncropped_batch(image)
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), image)
    assert torch.equal(tiny.uncropped_batch(image[None]), batch)
    assert tiny.uncropped_batch(image[:, :10], 8).shape == (1, 3, 8, 5)
    for two in (np.stack([image, image]), [image, image], torch.zeros(2, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"\b2\b"):
            tiny.uncropped_batch(two)


@pytest.mark.parametrize(
    ("size", "count", "ratio", "least", "expected"),
    [
        ((64, 96), 3, 2, 1, [(16, 24), (32, 48), (64, 96)]),
        ((64, 96), 1, 2, 1, [(64, 96)]),
        ((64, 96), 3, 2, 24, [(32, 48), (64, 96)]),
        ((10, 10), 3, 2, 24, [(10, 10)]),
        ((100, 50), 3, 1.4, 1, [(51, 26), (71, 36), (100, 50)]),
    ],
)
def test_pyramid_sizes(size: tuple, count: int, ratio: float, least: int, expected: list) -> None:
    assert pyramid_sizes(size, count, ratio, least) == expected


def reference_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation of the four neighboring pixels; pixel centers are at half-integer coordinates."""
    result = np.zeros((height, width, image.shape[2]))
    rows, columns = image.shape[:2]
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            v, u = y - top, x - left
            upper = (1 - u) * image[top, left] + u * image[top, right]
            lower = (1 - u) * image[below, left] + u * image[below, right]
            result[i, j] = (1 - v) * upper + v * lower
    return result


def test_resize_image_enlarging_matches_reference() -> None:
    image = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    assert np.abs(resize_image(image, 3) - reference_bilinear(image, 15, 21)).max() < 1e-5
    batch = torch.from_numpy(image.transpose(2, 0, 1))[None]
    uneven = resize_batch(batch, (8, 30))[0].permute(1, 2, 0).numpy()
    assert np.abs(uneven - reference_bilinear(image, 8, 30)).max() < 1e-5


def test_resize_image_shrinking_matches_reference() -> None:
    """Each output pixel is a mean under a triangular kernel that reaches one output pixel to either side."""
    line = np.random.default_rng(0).random(12)
    image = np.repeat(line[:, None, None], 12, axis=1).astype(np.float32)
    expected = np.zeros(4)
    for i in range(4):
        weights = np.array([max(0, 1 - abs(p + 0.5 - (i + 0.5) * 3) / 3) for p in range(12)])
        expected[i] = (weights * line).sum() / weights.sum()
    assert np.abs(resize_image(image, 1 / 3)[:, 0, 0] - expected).max() < 1e-5


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.9, 1.7])
def test_resize_image_keeps_brightness_of_uniform_image(scale: float) -> None:
    uniform = np.full((20, 30, 3), 0.37, np.float32)
    result = resize_image(uniform, scale)
    assert result.shape == (round(20 * scale), round(30 * scale), 3)
    assert np.abs(result - 0.37).max() < 1e-5


def test_resize_image_shrinks_checkerboard_to_gray() -> None:
    board = (np.indices((24, 24)).sum(0) % 2).astype(np.float32)[:, :, None]
    assert np.abs(resize_image(board, 1 / 3)[1:-1, 1:-1] - 0.5).max() < 0.06


def test_resize_to_same_size_changes_nothing() -> None:
    batch = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_batch(batch, (6, 7)), batch)
    image = batch[0].permute(1, 2, 0).numpy()
    assert np.array_equal(resize_image(image, 1.0), image)
