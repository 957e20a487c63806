"""Pictures in, arrays out: whatever a user has becomes one float32 array of (H, W, C) in [0, 1].

A file or a PIL picture is a *photo*: it is turned upright, made 8-bit and flattened onto white here, and later
resized and cropped by a network's `Transform`. An array or a tensor is *data*: it is used as it is, never resampled.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused before they are decoded (twice Pillow's own warning level)."""


def is_photo(source: Any) -> bool:
    """Whether `source` is a file name, the bytes of a file, or a PIL picture, rather than an array."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))


def open_photo(source: Any, name: str | None = None) -> Image.Image:
    """Read a photo: upright (EXIF), 8 bits, mode RGB, or L if it has no color; transparency on white.

    Parameters
    ----------
    source : path, bytes or PIL.Image.Image
    name : str, optional
        What errors call it.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not a picture, is damaged, or is too large to decode.
    """
    raw = isinstance(source, (bytes, bytearray, memoryview))
    opened = isinstance(source, Image.Image)
    name = name or ("the uploaded file" if raw else "what was opened" if opened else str(source))
    source = source if raw or opened else Path(source).expanduser()
    if not raw and not opened and not Path(source).is_file():
        what = "is a folder" if Path(source).is_dir() else "does not exist"
        raise FileNotFoundError(f"{name} {what}; give the path of a picture file")
    try:
        with contextlib.nullcontext(source) if opened else Image.open(io.BytesIO(source) if raw else source) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{name} has {width} x {height} pixels, too many to decode; make a smaller copy first")
            picture.load()
            return _to_8_bits(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many pixels to decode safely; make a smaller copy first") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that Pillow can read; save it as PNG or JPEG") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} cannot be read as a picture ({error}); the file may be damaged or cut off") from error


def _to_8_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        sixteen = picture.mode.startswith("I;16") or (picture.mode == "I" and values.max(initial=0) > 255)
        full = 65535 if sixteen else (255 if values.max(initial=0) > 1 else 1)
        return Image.fromarray(np.clip(values / full * 255 + 0.5, 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert({"La": "LA"}.get(picture.mode, "RGBA")).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode in ("L", "RGB"):
        return picture.copy()
    return picture.convert("L" if picture.mode == "1" else "RGB")


def to_array(source: Any, channels: int = 3) -> np.ndarray:
    """An array or tensor as a picture: (H, W, C) float32 in [0, 1], used as it is, never resampled.

    Parameters
    ----------
    source : array or tensor
        (H, W, C) or (H, W), floats in [0, 1] or uint8 in 0 to 255. A torch tensor may also be (C, H, W), and a
        batch of one picture is taken as that picture.
    channels : int
        How many channels the result has. Gray becomes RGB by repetition, RGB becomes gray by luminance
        (ITU-R 601, as in Pillow).

    Raises
    ------
    TypeError, ValueError
        Not numbers; a shape that is no picture; NaN or infinite pixels; values outside [0, 1].
    """
    given = tuple(getattr(source, "shape", ()))
    tensor = isinstance(source, torch.Tensor)
    if tensor:
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if not isinstance(source, np.ndarray) or source.dtype.kind not in "fiub":
        raise TypeError(f"{type(source).__name__} is no picture; give a path, a PIL picture, or an array of numbers")
    if source.ndim == 4 and len(source) == 1:
        source = source[0]
    if source.ndim == 3 and tensor and source.shape[0] in (1, 3, channels) and source.shape[0] <= source.shape[-1]:
        source = source.transpose(1, 2, 0)
    if source.ndim == 2:
        source = source[:, :, None]
    if source.ndim != 3 or source.shape[2] not in {1, 3, channels} or 0 in source.shape:
        hint = ""
        if not tensor and len(given) == 3 and given[0] in (1, 3, channels):
            hint = "; array.transpose(1, 2, 0) brings the channels to the end"
        elif given[-1:] == (4,):
            hint = "; array[..., :3] leaves the transparency out"
        raise ValueError(f"an array of shape {given} is no picture; the shape should be (height, width, {channels}){hint}")
    image = source.astype(np.float32) / (255 if source.dtype == np.uint8 else 1)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ValueError(f"{count} of the picture's values are NaN or infinite; replace them first (np.nan_to_num)")
    low, high = float(image.min()), float(image.max())
    if low < -1e-4 or high > 1 + 1e-4:
        hint = f"divide it by {255 if high < 256 else 65535}"
        if low < 0:
            hint = "it looks normalized already: give the picture before mean and std"
        raise ValueError(f"the picture's values lie in [{low:.3g}, {high:.3g}] instead of [0, 1]; {hint}")
    return _fit_channels(np.clip(image, 0, 1), channels)


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, C) floats in [0, 1] made larger or smaller, bilinearly, and smoothed before it loses pixels."""
    return scaled(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None], scale)[0].permute(1, 2, 0).numpy()


def scaled(batch: torch.Tensor, scale: float) -> torch.Tensor:
    """Pictures (N, C, H, W) made larger or smaller, see `resized_batch`."""
    return resized_batch(batch, (max(1, round(batch.shape[2] * scale)), max(1, round(batch.shape[3] * scale))))


def resized_batch(batch: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pictures (N, C, H, W) made (N, C, height, width), bilinearly, and smoothed before they lose pixels."""
    if tuple(batch.shape[2:]) == tuple(size):
        return batch
    return torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)


def pyramid(size: tuple[int, int], count: int, ratio: float, least: int = 1) -> list[tuple[int, int]]:
    """Sizes (height, width), each `ratio` times smaller than the next; the last one is `size`.

    Those with a side of less than `least` pixels are left out, but for `size` itself.

    >>> pyramid((64, 96), 3, 2)
    [(16, 24), (32, 48), (64, 96)]
    """
    smaller = [(round(size[0] / ratio**i), round(size[1] / ratio**i)) for i in range(count - 1, 0, -1)]
    return [*(one for one in smaller if min(one) >= least), (size[0], size[1])]


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] of any shape as uint8."""
    return (image * 255 + 0.5).astype(np.uint8)


def pixel_rows(pictures: np.ndarray) -> np.ndarray:
    """Pictures (n, ...), uint8 or in [0, 1], as rows (n, D) of float32 in [0, 1]."""
    return pictures.reshape(len(pictures), -1).astype(np.float32) / (255 if pictures.dtype == np.uint8 else 1)


def photo_array(picture: Image.Image, channels: int = 3) -> np.ndarray:
    """An 8-bit photo as (H, W, C) float32 in [0, 1]."""
    mode = {1: "L", 3: "RGB"}.get(channels, picture.mode)
    array = np.asarray(picture.convert(mode), np.float32) / 255
    return _fit_channels(array if array.ndim == 3 else array[:, :, None], channels)


def _fit_channels(image: np.ndarray, channels: int) -> np.ndarray:
    have = image.shape[2]
    if have == channels:
        return image
    if have == 1:
        return np.repeat(image, channels, axis=2)
    if channels == 1 and have == 3:
        return (image @ np.array([0.299, 0.587, 0.114], np.float32))[:, :, None]
    raise ValueError(f"the picture has {have} channels and the network takes {channels}; give an array with {channels}")
