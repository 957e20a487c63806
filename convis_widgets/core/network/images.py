"""Images: anything a user passes becomes an (H, W, C) float32 array in [0, 1].

Image files and PIL images are turned upright, converted to 8 bits and composited on white here, and later resized and
cropped by a `Transform`. Arrays and tensors are used as they are, never resampled.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..types import ImageFile, ImageLike

MAX_PIXELS = 178_956_970
"""Images with more pixels are rejected before they are decoded (twice Pillow's own warning level)."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance of a pixel (ITU-R 601, as in Pillow)."""


def is_image_file(source: object) -> TypeGuard[ImageFile]:
    """Whether `source` is a path, the bytes of a file, or a PIL image, rather than an array."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))


def open_image(source: ImageFile, name: str | None = None) -> Image.Image:
    """Open an image: upright (EXIF), 8 bits per channel, mode RGB, or L if it has no color; transparency on white.

    Parameters
    ----------
    source : path, bytes or PIL.Image.Image
    name : str, optional
        Name of the image in error messages.

    Raises
    ------
    FileNotFoundError
        The file does not exist.
    ValueError
        The file is not an image, is damaged, or is too large to decode.
    """
    file: Image.Image | io.BytesIO | Path
    if isinstance(source, Image.Image):
        file, name = source, name or "the PIL image"
    elif isinstance(source, (bytes, bytearray, memoryview)):
        file, name = io.BytesIO(source), name or "the uploaded file"
    else:
        file, name = Path(source).expanduser(), name or str(source)
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise FileNotFoundError(f"{name} {what}; give the path of an image file")
    try:
        with contextlib.nullcontext(file) if isinstance(file, Image.Image) else Image.open(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{name} has {width} x {height} pixels, too many to decode; make a smaller copy first")
            image.load()
            return _to_8_bits(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many pixels to decode safely; make a smaller copy first") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that Pillow can read; save it as PNG or JPEG") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} cannot be read as an image ({error}); the file may be damaged or truncated") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and values.max(initial=0) > 255)
        white_level = 65535 if is_16_bit else (255 if values.max(initial=0) > 1 else 1)
        return Image.fromarray(np.clip(values / white_level * 255 + 0.5, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image.copy()
    return image.convert("L" if image.mode == "1" else "RGB")


def to_array(source: ImageLike, channels: int = 3) -> np.ndarray:
    """Convert an array or tensor to an (H, W, C) float32 array in [0, 1], without resampling.

    Parameters
    ----------
    source : array or tensor
        (H, W, C) or (H, W), floats in [0, 1] or uint8 in 0 to 255. A tensor may also be (C, H, W). A batch of one image is
        accepted. An object with an attribute `image` (a Scene of the demo) stands for that image.
    channels : int
        Number of channels of the result. Gray becomes RGB by repetition, RGB becomes gray by luminance.

    Raises
    ------
    TypeError
        Not an array of numbers.
    ValueError
        The shape is not that of an image; pixels are NaN or infinite, or outside [0, 1].
    """
    image = getattr(source, "image", source)
    shape = tuple(getattr(image, "shape", ()))
    is_tensor = isinstance(image, torch.Tensor)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "fiub":
        raise TypeError(f"{type(image).__name__} is not an image; give a path, a PIL image, or an array of numbers")
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim == 3 and is_tensor and image.shape[0] in (1, 3, channels) and image.shape[0] <= image.shape[-1]:
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in {1, 3, channels} or 0 in image.shape:
        hint = ""
        if not is_tensor and len(shape) == 3 and shape[0] in (1, 3, channels):
            hint = "; array.transpose(1, 2, 0) moves the channels to the end"
        elif shape[-1:] == (4,):
            hint = "; array[..., :3] removes the transparency"
        raise ValueError(f"an array of shape {shape} is not an image; the shape should be (height, width, {channels}){hint}")
    image = image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ValueError(f"{count} values of the image are NaN or infinite; replace them first (np.nan_to_num)")
    low, high = float(image.min()), float(image.max())
    if low < -1e-4 or high > 1 + 1e-4:
        hint = f"divide it by {255 if high < 256 else 65535}"
        if low < 0:
            hint = "it seems to be normalized; give the image before mean and std are applied"
        raise ValueError(f"the values of the image lie in [{low:.3g}, {high:.3g}] instead of [0, 1]; {hint}")
    return _fit_channels(np.clip(image, 0, 1), channels)


def resize_image(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image by a factor, bilinearly and antialiased.

    Parameters
    ----------
    image : (H, W, C) float32 array in [0, 1]
    scale : float
        Positive factor for height and width, see `scale_batch`.
    """
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return to_channels_last(scale_batch(batch, scale)).numpy()


def scale_batch(batch: torch.Tensor, scale: float) -> torch.Tensor:
    """Resize images by a factor, see `resize_batch`.

    Parameters
    ----------
    batch : (N, C, H, W) tensor
    scale : float
        Positive factor for height and width, which are rounded to at least one pixel.
    """
    return resize_batch(batch, (max(1, round(batch.shape[2] * scale)), max(1, round(batch.shape[3] * scale))))


def resize_batch(batch: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize images, bilinearly and antialiased.

    Parameters
    ----------
    batch : (N, C, H, W) tensor
    size : (int, int)
        Height and width in pixels; images of this size are returned unchanged.
    """
    if tuple(batch.shape[2:]) == tuple(size):
        return batch
    return torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)


def to_channels_last(images: torch.Tensor) -> torch.Tensor:
    """Move the channels of an image tensor to the end; a view, without synchronization.

    Parameters
    ----------
    images : (C, H, W), (1, C, H, W) or (N, C, H, W) tensor

    Returns
    -------
    (H, W, C) tensor for one image, (N, H, W, C) tensor for several
    """
    if images.ndim == 4 and len(images) == 1:
        images = images[0]
    return images.movedim(-3, -1)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert floats in [0, 1], of any shape, to uint8."""
    return (image * 255 + 0.5).astype(np.uint8)


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Convert images (n, ...), uint8 or in [0, 1], to rows (n, D) of float32 in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / (255 if images.dtype == np.uint8 else 1)


def pil_to_array(image: Image.Image, channels: int = 3) -> np.ndarray:
    """Convert a PIL image to an (H, W, C) float32 array in [0, 1].

    Parameters
    ----------
    image : PIL.Image.Image
        With 8 bits per channel.
    channels : int
        Number of channels of the result, see `to_array`.
    """
    mode = {1: "L", 3: "RGB"}.get(channels, image.mode)
    array = np.asarray(image.convert(mode), np.float32) / 255
    return _fit_channels(array if array.ndim == 3 else array[:, :, None], channels)


def _fit_channels(image: np.ndarray, channels: int) -> np.ndarray:
    count = image.shape[2]
    if count == channels:
        return image
    if count == 1:
        return np.repeat(image, channels, axis=2)
    if channels == 1 and count == 3:
        return (image @ np.array(LUMINANCE, np.float32))[:, :, None]
    raise ValueError(f"the image has {count} channels and the network takes {channels}; give an array with {channels}")


def gaussian_blur(batch: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur images with a Gaussian, truncated at four standard deviations and reflected at the borders.

    Parameters
    ----------
    batch : (N, C, H, W) tensor
    sigma : float
        Standard deviation in pixels; 0 returns `batch`.
    """
    if sigma == 0:
        return batch
    rows, columns = (_gaussian_matrix(size, sigma).to(batch) for size in batch.shape[2:])
    return rows @ batch @ columns.T


@functools.lru_cache(16)
def _gaussian_matrix(size: int, sigma: float) -> torch.Tensor:
    """Matrix (size, size) that blurs a row or column."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = (-offsets.double().square() / (2 * sigma**2)).exp()
    sources = (torch.arange(size)[:, None] + offsets) % (2 * size)  # reflected at the borders: d c b a a b c d
    sources = torch.where(sources < size, sources, 2 * size - 1 - sources)
    matrix = torch.zeros(size, size, dtype=torch.double)
    return matrix.scatter_add_(1, sources, (weights / weights.sum()).expand(size, -1))
