"""Encoding of images as PNG and JPEG, and conversions of their values, channels and size for display."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ...core.network.images import to_uint8

HIGHLIGHT = (255, 64, 160)  # color of what is selected
MAX_PIXELS = 64_000_000  # of one image, 192 MB of RGB; pages do not show larger ones either


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError before memory is taken for an image that is too large to be shown or saved.

    Parameters
    ----------
    height, width : int
        In pixels.
    """
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"an image of {height}x{width} pixels is too large to be shown or saved; choose fewer or smaller parts, "
            f"{MAX_PIXELS // 10**6} million pixels at most"
        )


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of an (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8 image: exact, for still images."""
    buffer = io.BytesIO()
    Image.fromarray(squeeze_gray(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    """JPEG bytes of an (H, W), (H, W, 1) or (H, W, 3) uint8 image: small and fast, for streamed images."""
    buffer = io.BytesIO()
    Image.fromarray(squeeze_gray(image)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def to_rgb_uint8(image: np.ndarray) -> np.ndarray:
    """Image (H, W, C) of floats, clipped to [0, 1], as (H, W, 3) uint8; see `to_rgb`."""
    return to_rgb(to_uint8(np.clip(image, 0, 1)))


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Image (H, W, C) as (H, W, 3): the first three channels, or the first one as gray."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def zoom_factor(height: int, width: int, side: int) -> int:
    """Largest integer by which an image can be enlarged so that its longer side is at most `side`, but at least 1."""
    return max(1, side // max(height, width))


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """Image resized for display.

    Images of up to half the size are enlarged by an integer, which keeps their pixels sharp. Larger images are resized by
    bicubic interpolation.

    Parameters
    ----------
    image : (H, W, C) uint8 array
    side : int
        Longer side in pixels; after enlargement by an integer it is at most that.
    """
    height, width = image.shape[:2]
    factor = zoom_factor(height, width, side)
    if factor > 1:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    size = smooth_size(height, width, side)
    return np.asarray(Image.fromarray(squeeze_gray(image)).resize(size[::-1], Image.Resampling.BICUBIC))


def smooth_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of an image after it is scaled so that its longer side is `side` pixels."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def blend(image: np.ndarray, colors: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """Weighted mean of two images (H, W, 3) uint8; `weight`, a number or (H, W) in [0, 1], is that of `colors`."""
    weight = np.asarray(weight, np.float32)
    weight = weight[..., None] if weight.ndim == 2 else weight
    return (image * (1 - weight) + colors * weight + 0.5).astype(np.uint8)


def desaturate(image: np.ndarray) -> np.ndarray:
    """Copy of an image (H, W, 3) with most of its color removed, as background of an overlay."""
    return blend(image, np.repeat(image.mean(2, keepdims=True).astype(np.uint8), 3, axis=2), 0.8)


def draw_box(image: np.ndarray, box: Sequence[float], color: tuple[int, ...] = HIGHLIGHT, width: int = 2) -> np.ndarray:
    """Copy of an image with a frame *around* a box. The frame has a dark edge, so that it is visible on any background.

    Parameters
    ----------
    image : (H, W, C) uint8 array
    box : (top, left, bottom, right)
        In pixels; rounded.
    color : tuple of int
        (red, green, blue), each from 0 to 255.
    width : int
        Width of the frame in pixels, without its edge.
    """
    canvas = Image.fromarray(squeeze_gray(image))
    draw = ImageDraw.Draw(canvas)
    top, left, bottom, right = (round(v) for v in box)
    image_height, image_width = image.shape[:2]
    for distance, line_color, line_width in ((width + 1, (0, 0, 0), 1), (width, color, width)):
        draw.rectangle(
            (
                max(left - distance, 0),
                max(top - distance, 0),
                min(right - 1 + distance, image_width - 1),
                min(bottom - 1 + distance, image_height - 1),
            ),
            outline=(*line_color, 255)[: image.shape[2]],
            width=line_width,
        )
    return np.asarray(canvas)


def squeeze_gray(image: np.ndarray) -> np.ndarray:
    """Image (H, W, 1) as (H, W), any other unchanged; contiguous, as Pillow requires."""
    return np.ascontiguousarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
