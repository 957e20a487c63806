"""Damaged image files and archives: an image, or an error that names the file, and nothing else."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.network.transform import Transform

TRANSFORM = Transform((12, 12), resize=14)
MODES = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "I", "F", "I;16", "1", "P"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "P", "1"),
}
OPTIONS = {
    "JPEG": ({}, {"progressive": True}),
    "PNG": ({}, {"transparency": 0}),
    "GIF": ({}, {"save_all": True}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}),
    "WEBP": ({}, {"lossless": True}),
}


def encoded(kind: str, mode: str, options: dict) -> bytes:
    """A small image as a file of this format."""
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    options = {k: v for k, v in options.items() if k != "transparency" or mode in ("L", "P")}
    if kind == "GIF" and "save_all" in options:
        options = {**options, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    image.save(data, kind, **options, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
    return data.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed, repeated or added; more often near the beginning, where the header is."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 80)
        i = rng.randrange(max(1, end))
        action = rng.random()
        if action < 0.6:
            changed[i : i + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
        elif action < 0.7:
            changed[i : i + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif action < 0.8:
            del changed[i : i + rng.randrange(1, 40)]
        elif action < 0.9:
            changed[i:i] = changed[i : i + rng.randrange(1, 40)]
        else:
            del changed[i:]
    return bytes(changed)


def result(read: Callable[[], Any]) -> Any:
    """What is read, or the error if it is one of those that users expect."""
    try:
        return read()
    except (ValueError, FileNotFoundError, TypeError) as error:
        return error


def check_image(image: np.ndarray) -> None:
    assert (image.shape, image.dtype) == ((12, 12, 3), np.float32)
    assert 0 <= image.min() <= image.max() <= 1


def check_images(seed: int, folder: Path, count: int) -> int:
    """Read `count` damaged image files; the number that could be read."""
    rng, num_read = random.Random(seed), 0
    files = {
        (kind, mode, i): encoded(kind, mode, options)
        for kind, modes in MODES.items()
        for mode in modes
        for i, options in enumerate(OPTIONS.get(kind, ({},)))
    }
    for i in range(count):
        kind, mode, option = rng.choice(list(files))
        path = folder / f"damaged {i} {mode}.{kind.lower()}"
        path.write_bytes(damaged(files[kind, mode, option], rng))
        image = result(lambda path=path: TRANSFORM.image(path))
        if isinstance(image, Exception):
            assert path.name in str(image), repr(image)
            assert "\n" not in str(image)
        else:
            check_image(image)
            num_read += 1
        path.unlink()
    return num_read


def check_archives(seed: int, folder: Path, count: int, save: Callable) -> int:
    """Read `count` damaged archives of images; the number that could be read."""
    rng, num_read = random.Random(seed), 0
    data = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    save(data, images=images, labels=np.arange(3), classes=np.array(["a", "b", "c"]))
    for i in range(count):
        path = folder / f"damaged {i}.npz"
        path.write_bytes(damaged(data.getvalue(), rng))
        opened = result(lambda path=path: ImageSet(path))
        if isinstance(opened, Exception):
            assert path.name in str(opened), repr(opened)
        else:
            for index in range(len(opened)):
                item = result(lambda opened=opened, index=index: opened.load(index, TRANSFORM))
                if not isinstance(item, Exception):  # values or shapes that are not those of an image
                    check_image(item[0])
                    assert item[1] >= -1
            num_read += 1
        path.unlink()
    return num_read


@pytest.mark.filterwarnings("ignore")  # of the decoders
@pytest.mark.parametrize("seed", range(8))
def test_damaged_image_file_is_read_or_named_in_the_error(seed: int, tmp_path: Path) -> None:
    assert 0 < check_images(seed, tmp_path, 1000) < 1000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archive_is_read_or_named_in_the_error(save: Callable, tmp_path: Path) -> None:
    assert 0 < check_archives(0, tmp_path, 300, save) < 300
