"""Image files and PIL images: decoded within limits and converted to 8 bits per channel."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ..files import check_regular_file, expand_user
from ..memory import MAX_IMAGE_BYTES, check_memory
from ..text import one_line
from ..types import ImageFile as ImageSource
from .images import check_range

# Formats that Pillow hands to other programs (EPS, and IPTC, which may contain one) or to handlers of other packages, or
# whose numbers have no white level (FITS, which Pillow takes for unsigned).
EXCLUDED_FORMATS = frozenset({"BUFR", "EPS", "FITS", "FPX", "GRIB", "HDF5", "IPTC", "MIC", "MPEG", "PDF", "WMF"})

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
STRIP_PIXELS = 1 << 20  # converted at a time

# Bytes per pixel, measured: of the image in memory, with what it is converted to, 8 for other modes ...
MODE_BYTES = {"1": 2, "L": 1, "P": 5, "RGB": 4, "I;16": 3, "I;16B": 3, "I;16L": 3, "I;16N": 3, "I": 13, "F": 13}
# ... and of the decoder, 4 for other formats
DECODER_BYTES = dict.fromkeys(("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TGA"), 0) | {
    "WEBP": 12,
    "AVIF": 6,
    "JPEG2000": 16,
}
PROGRESSIVE_BYTES = 6  # of progressive JPEG, whose coefficients are all kept

ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF


def is_image_file(source: object) -> TypeGuard[ImageSource]:
    """Whether `source` is a path, the bytes of a file, or a PIL image, rather than an array."""
    return isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, io.BytesIO, Image.Image))


def image_formats() -> list[str]:
    """The formats of image files, by Pillow's names: those that are decoded in this process."""
    Image.init()
    return [name for name in Image.ID if name not in EXCLUDED_FORMATS]


def image_suffixes() -> set[str]:
    """Endings of the names of image files, in lower case."""
    formats = {*image_formats()}
    return {suffix for suffix, name in Image.registered_extensions().items() if name in formats}


def open_image(source: ImageSource, name: str | None = None, *, channels: int = 3) -> Image.Image:
    """Open an image: upright (EXIF), 8 bits per channel, mode RGB, or L if it has no color; transparency on white.

    The first image of an animation or of several pages. JPEG files that are too large for `MAX_IMAGE_BYTES` are decoded at
    1/2, 1/4 or 1/8 of their size.

    Parameters
    ----------
    source : path, bytes, io.BytesIO or PIL.Image.Image
    name : str, optional
        Name of the image in error messages.
    channels : int
        Channels of the network. An image with 2 or 4 channels (LA, RGBA, CMYK) keeps them if the network has as many.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not an image, is damaged, or takes too much memory; its numbers are not in [0, 1], or integers of 8 or
        16 bits.
    """
    if isinstance(source, Image.Image):
        path = getattr(source, "filename", "")
        name = one_line(name or path or "the PIL image")
        if source.format in EXCLUDED_FORMATS and getattr(source, "tile", None):
            raise ValueError(
                f"{name} has the format {source.format}, which is not decoded; load it first, or save it as PNG"
            )
        _choose_reduction(source, name, reductions=(1,))  # it is not changed
        return _decode(source, name, channels)
    file: io.BytesIO | Path
    if isinstance(source, (str, os.PathLike)):
        file, name = _find(source), one_line(name or source)
    else:
        content = source.getvalue() if isinstance(source, io.BytesIO) else bytes(source)
        file, name = io.BytesIO(content), one_line(name or "the uploaded file")
    with _decoding(name):
        image = Image.open(file, formats=image_formats())
    with image:
        reduction = _choose_reduction(image, name)
        with _decoding(name):
            if reduction > 1:
                image.draft(image.mode, (image.width // reduction, image.height // reduction))
        return _decode(image, name, channels)


def _find(source: str | os.PathLike[str]) -> Path:
    if isinstance(source, str) and ("://" in source[:20] or source.startswith("data:")):
        raise FileNotFoundError(f"{one_line(source)} is an address, not the path of a file; download it first")
    path = expand_user(source)
    check_regular_file(path, "the path of an image file")
    return path


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Make a ValueError that names the file of whatever a decoder raises."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{name} has too many pixels to decode safely; make a smaller copy first") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that can be read here; save it as PNG or JPEG") from None
    except Exception as error:
        why = one_line(" ".join(str(error).split())) or type(error).__name__
        raise ValueError(f"{name} cannot be read as an image ({why}); the file may be damaged or truncated") from error


def _decode(image: Image.Image, name: str, channels: int) -> Image.Image:
    with _decoding(name):
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" and channels not in (1, 3) else 1
        image.load()
    if pages > 1:
        raise ValueError(f"{name} has {pages} pages; give an array of shape (height, width, {channels})")
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        check_range(np.asarray(image), name)
    with _decoding(name):
        converted = _to_8_bits(image, channels)
        turn = TURNS.get(_orientation(image))
    count = len(converted.getbands())
    if count not in (1, channels) and (count, channels) != (3, 1):
        raise ValueError(f"{name} has {count} channels and the network takes {channels}; give an array with {channels}")
    return converted if turn is None else converted.transpose(turn)


def _choose_reduction(image: Image.Image, name: str, reductions: Sequence[int] = (1, 2, 4, 8)) -> int:
    """The factor by which a JPEG file is reduced to fit into memory, 1 for most; ValueError if an image does not fit."""
    width, height = image.size
    if not width * height:
        raise ValueError(f"{name} has {width} x {height} pixels; give an image with one pixel or more")
    is_jpeg = isinstance(image, JpegImageFile)
    decoder = DECODER_BYTES.get(image.format or "", 4) if isinstance(image, ImageFile.ImageFile) else 0
    decoder += PROGRESSIVE_BYTES if is_jpeg and "progressive" in image.info else 0
    per_pixel = MODE_BYTES.get(image.mode, 8) + (4 if "transparency" in image.info else 0)
    reductions = reductions if is_jpeg else (1,)
    pixels = {r: math.ceil(width / r) * math.ceil(height / r) for r in reductions}
    needed = {r: width * height * decoder + pixels[r] * per_pixel for r in reductions}
    reduction = next((r for r in reductions if needed[r] <= MAX_IMAGE_BYTES), reductions[-1])
    check_memory(
        f"{name} has {width} x {height} pixels and", needed[reduction], MAX_IMAGE_BYTES, "make a smaller copy first"
    )
    return reduction


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (damaged metadata of an image that can be read)
        return 1


def _to_8_bits(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _in_strips(image, "L", lambda strip: _from_numbers(strip, *_levels(image)))
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, in Pillow before 11
        return _in_strips(image, "L", lambda strip: _from_numbers(strip, 0, 65535))
    if image.mode in ("I", "F"):
        return _in_strips(image, "L", lambda strip: _from_numbers(strip, 0, 1))
    if len(image.getbands()) == channels and channels in (2, 4):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return _in_strips(image, "RGB", _on_white)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _in_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image in horizontal strips, which takes little more memory than the result."""
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        return convert(image)
    result = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        result.paste(convert(image.crop((0, top, image.width, min(top + rows, image.height)))), (0, top))
    return result


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _levels(image: Image.Image) -> tuple[int, int]:
    """Values of black and white of an image of 16-bit integers: its format says so, 12 bits in some TIFF files."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    white = 2**bits - 1 if bits in range(9, 16) else 65535
    return (white, 0) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (0, white)


def _from_numbers(image: Image.Image, black: int, white: int) -> Image.Image:
    values = (np.asarray(image).astype(np.float32) - black) * (255 / (white - black))
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
