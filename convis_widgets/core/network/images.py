"""Images as arrays: (H, W, C) float32 in [0, 1]. Arrays and tensors are used as they are, never resampled."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..memory import MAX_IMAGE_BYTES, check_memory
from ..types import ImageLike

FLOAT_BYTES = 12  # per number: float32, as an image, in a batch, and normalized

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance of a pixel (ITU-R 601, as in Pillow)."""


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
    image = arrange_axes(source, channels)
    height, width, count = image.shape
    check_memory(
        f"an array of {height}x{width} pixels is too large: for a network it",
        height * width * max(count, channels) * FLOAT_BYTES,
        MAX_IMAGE_BYTES,
        "resize it, or give a file or PIL image, which is resized",
    )
    scale = 255 if image.dtype == np.uint8 else 1
    if image.dtype.kind != "b" and scale == 1:
        check_range(image, "the image")
    image = np.array(image, np.float32, order="C")
    image /= scale
    return _fit_channels(np.clip(image, 0, 1, out=image), channels)


def arrange_axes(source: ImageLike, channels: int = 3) -> np.ndarray:
    """Convert an array or tensor to an (H, W, C) array of the same numbers, see `to_array`.

    Parameters
    ----------
    source : array or tensor
    channels : int
        Number of channels of the network; there may also be 1 or 3.
    """
    is_tensor = isinstance(getattr(source, "image", source), torch.Tensor)
    image = as_numpy(source)
    shape = image.shape
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim == 3 and is_tensor and image.shape[0] in (1, 3, channels) and image.shape[0] <= image.shape[-1]:
        image = image.transpose(1, 2, 0)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in {1, 3, channels} or 0 in image.shape:
        hint = ""
        if not is_tensor and image.ndim == 3 and image.shape[0] in (1, 3, channels):
            hint = "; array.transpose(1, 2, 0) moves the channels to the end"
        elif shape[-1:] == (4,):
            hint = "; array[..., :3] removes the transparency"
        raise ValueError(f"an array of shape {shape} is not an image; the shape should be (height, width, {channels}){hint}")
    return image


def as_numpy(source: Any) -> np.ndarray:
    """Convert an array, a tensor, or another object with ``__array__`` to a numpy array of numbers.

    Raises
    ------
    TypeError
        It is not an array of real numbers, or its values are not in memory.
    ValueError
        Values of a masked array are masked.
    """
    image = getattr(source, "image", source)
    kind = type(image).__name__
    if np.ma.is_masked(image):
        raise ValueError("the image has masked values; replace them first (array.filled(0))")
    try:
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        elif hasattr(image, "__array__") and not isinstance(image, type):
            image = np.asarray(image)
    except Exception as error:  # sparse, quantized, complex, without values
        raise TypeError(f"{kind} cannot be converted to an array ({error}); convert it to a dense array first") from error
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{kind} is not an image; give a path, a PIL image, or an array of numbers")
    if image.dtype.kind not in "fiub":
        raise TypeError(f"an array of {image.dtype} is not an image; give a path, a PIL image, or an array of numbers")
    return image


def check_range(values: np.ndarray, name: str) -> None:
    """Raise ValueError unless all values are finite and in [0, 1].

    Parameters
    ----------
    values : array
    name : str
        Name of the image in the message.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"{count} values of {name} are NaN or infinite; replace them first (np.nan_to_num)")
    if low < -1e-4 or high > 1 + 1e-4:
        hint = f"divide it by {255 if high < 256 else 65535}"
        if low > -0.25 and high < 1.25:
            hint = "clip it (np.clip(image, 0, 1))"
        elif low < 0:
            hint = "it seems to be normalized; give the image before mean and std are applied"
        raise ValueError(f"the values of {name} lie in [{low:.3g}, {high:.3g}] instead of [0, 1]; {hint}")


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


def images_to_batch(images: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Convert images (N, H, W, C), uint8 or in [0, 1], to a tensor (N, C, H, W) in [0, 1]; does not wait for a GPU.

    Parameters
    ----------
    images : array
    device : torch.device
    dtype : torch.dtype
    """
    batch = torch.from_numpy(images)
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    batch = batch.to(device).permute(0, 3, 1, 2)
    # not contiguous(), which keeps the strides of a gray image; convolutions would take it for channels last
    wide = torch.promote_types(batch.dtype, torch.float32)
    pixels = batch.to(wide, copy=True, memory_format=torch.contiguous_format)
    return (pixels.div_(255) if images.dtype == np.uint8 else pixels).to(dtype)


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


def to_float(image: np.ndarray) -> np.ndarray:
    """Convert uint8 of any shape to float32 in [0, 1]; floats are returned as they are."""
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Convert images (n, ...), uint8 or in [0, 1], to rows (n, D) of float32 in [0, 1]."""
    return to_float(images.reshape(len(images), -1)).astype(np.float32, copy=False)


def pil_to_array(image: Image.Image, channels: int = 3) -> np.ndarray:
    """Convert a PIL image to an (H, W, C) uint8 array.

    Parameters
    ----------
    image : PIL.Image.Image
        With 8 bits per channel.
    channels : int
        Number of channels of the result, see `to_array`.
    """
    mode = {1: "L", 3: "RGB"}.get(channels, image.mode)
    array = np.array(image.convert(mode))
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
