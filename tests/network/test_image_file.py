"""Image files: decoders, limits, numbers, channels, and errors that name the file."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torch import nn

from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.memory import MAX_IMAGE_BYTES
from convis_widgets.core.network import image_file, image_size
from convis_widgets.core.network.image_file import image_formats, open_image
from convis_widgets.core.network.images import FLOAT_BYTES
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.transform import Transform

PLAIN = Transform((8, 8), 3)
RANDOM = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, color: int = 0, more: bytes = b"", data: bytes = b"") -> bytes:
    """A PNG file with this header, which may have too little data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """An uncompressed TIFF file of (height, width, samples), made by hand."""
    height, width, count = samples.shape
    data = samples.tobytes() if bits % 8 == 0 else np.packbits(samples.astype(">u2").reshape(-1, 1).view(np.uint8)).tobytes()
    if bits == 12:  # two samples in three bytes
        pairs = samples.reshape(-1, 2).astype(np.uint32)
        whole = (pairs[:, 0] << 12) | pairs[:, 1]
        data = np.stack([whole >> 16, (whole >> 8) & 255, whole & 255], 1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: count, 278: height, 279: len(data)}
    tags[339] = sample_format
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = end
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


# -- decoders -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="a program as a script")
def test_no_image_file_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "set").mkdir()
    for name in ("x.png", "x.eps", "x.jpg"):
        (tmp_path / "set" / name).write_bytes(EPS)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            PLAIN.image(tmp_path / "set" / name)
        with Image.open(tmp_path / "set" / name) as opened, pytest.raises(ValueError, match=r"EPS"):
            PLAIN.image(opened)
    with pytest.raises(ValueError, match="uploaded"):
        PLAIN.image(EPS)
    images = ImageSet(tmp_path / "set")
    assert images.names == ["x.jpg", "x.png"]
    for i in range(2):
        with pytest.raises(ValueError, match=r"x\.(png|jpg)"):
            images.load(i, PLAIN)
    assert not (tmp_path / "started").exists()


def test_formats_are_decoded_in_this_process() -> None:
    formats = image_formats()
    assert {"PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"} <= {*formats}
    assert not {"EPS", "IPTC", "WMF", "FPX", "MIC", "HDF5", "GRIB", "BUFR", "MPEG", "PDF"} & {*formats}


@pytest.mark.parametrize(
    "content",
    [
        b"BLP2" + struct.pack("<IBBBBII", 9, 7, 8, 8, 8, 8, 8) + bytes(2000),
        b"BLP1" + struct.pack("<iIIIiI", 0, 0, 8, 8, 5, 0) + bytes(2000),
        png(8, 8, data=bytes(72), more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000)))),
        b"\xd7\xcd\xc6\x9a" + bytes(40),
        EPS,
        b"",
    ],
    ids=["BLP", "BLP without palette", "text bomb", "WMF", "EPS", "empty"],
)
def test_error_of_any_decoder_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd name.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"odd name\.png.*;") as caught:
        PLAIN.image(path)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)


def test_damaged_metadata_does_not_matter() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = PLAIN.image(encoded(Image.fromarray(RANDOM), "JPEG", exif=exif, quality=100, subsampling=0))
    assert np.abs(image - RANDOM / 255).max() < 0.03


# -- paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x" * 5000, "xxx.*cannot be opened"),
        ("~nosuchuser/x.png", "~nosuchuser/x.png"),
        ("https://example.org/x.png", "address"),
        ("data:image/png;base64,AAAA", "address"),
        ("a\0b.png", "b.png"),
        ("", "folder"),
    ],
)
def test_path_that_cannot_be_opened_raises_one_sentence(path: str, message: str, demo_net: Network) -> None:
    with pytest.raises(FileNotFoundError, match=message) as caught:
        demo_net.predict(path)
    assert len(str(caught.value)) < 500
    assert "Errno" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and devices")
def test_fifo_and_device_are_not_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    os.mkfifo(tmp_path / "fifo.npz")
    for path in (tmp_path / "fifo.png", "/dev/null"):
        with pytest.raises(FileNotFoundError, match="is not a regular file"):
            PLAIN.image(path)
    with pytest.raises(FileNotFoundError, match="is not a regular file"):
        ImageSet(tmp_path / "fifo.npz")
    with pytest.raises(FileNotFoundError, match="is not a regular file"):
        ImageSet(tmp_path).load(0, PLAIN)


def test_image_in_memory_may_be_bytes_or_a_bytes_io() -> None:
    data = encoded(Image.fromarray(RANDOM))
    for source in (data, bytearray(data), memoryview(data), memoryview(data + data)[: len(data)], io.BytesIO(data)):
        for _ in range(2):  # it is not consumed
            assert np.array_equal(PLAIN.image(source), RANDOM.astype(np.float32) / 255)


def test_closed_pil_image_raises_one_sentence(tmp_path: Path) -> None:
    Image.fromarray(RANDOM).save(tmp_path / "closed.png")
    opened = Image.open(tmp_path / "closed.png")
    opened.close()
    with pytest.raises(ValueError, match=r"closed\.png"):
        PLAIN.image(opened)


# -- numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RANDOM[..., 0] / np.float32(127) - 1, "normalized"),
        (RANDOM[..., 0].astype(np.float32) * 12, r"e\+03\].*65535"),
        (RANDOM[..., 0].astype(np.float32), r"\b255\b"),
        (np.where(RANDOM[..., 0] > 99, np.nan, 0.5).astype(np.float32), "NaN"),
        (RANDOM[..., 0].astype(np.int32), r"\b255\b"),
        (RANDOM[..., 0].astype(np.int32) * 200, r"\b65535\b"),
        (RANDOM[..., 0].astype(np.int32) * 10 - 1000, "normalized"),
    ],
)
def test_numbers_that_are_not_in_range_are_rejected_as_in_arrays(array: np.ndarray, message: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.tif"
    Image.fromarray(array).save(path)
    with pytest.raises(ValueError, match=message) as of_array:
        PLAIN.image(array)
    with pytest.raises(ValueError, match=message) as of_file:
        PLAIN.image(path)
    assert str(of_file.value) == str(of_array.value).replace("the image", str(path), 1)
    with pytest.raises(ValueError, match=message):
        PLAIN.image(Image.fromarray(array))


def test_floats_in_range_and_integers_of_16_and_12_bits_are_used() -> None:
    gray = RANDOM[..., 0]
    expected = np.repeat(gray[..., None], 3, 2) / 255
    files = {
        "float": encoded(Image.fromarray(gray / np.float32(255)), "TIFF"),
        "16 bits, PNG": encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"),
        "16 bits, TIFF": encoded(Image.fromarray(gray.astype(np.uint16) * 257), "TIFF"),
        "16 bits, PGM": b"P5\n8 8\n65535\n" + (gray.astype(">u2") * 257).tobytes(),
        "16 bits, by hand": tiff(gray[..., None].astype("<u2") * 257, 16, 1),
        "12 bits": tiff((gray[..., None] / 255 * 4095).round(), 12, 1),
        "white is zero": tiff(65535 - gray[..., None].astype("<u2") * 257, 16, 0),
        "8 bits, white is zero": tiff(255 - gray[..., None], 8, 0),
    }
    for name, file in files.items():
        assert np.abs(PLAIN.image(file) - expected).max() < 0.5 / 255, name
    sixteen = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(np.asarray(open_image(Image.fromarray(sixteen))), np.round(sixteen / 257))
    assert PLAIN.image(Image.fromarray((gray > 99).astype(np.int32))).max() == 1
    with pytest.raises(ValueError, match="-100"):
        PLAIN.image(tiff(np.full((8, 8, 1), -100, "<i2"), 16, 1, sample_format=2))


# -- arrays -------------------------------------------------------------------------------------------------------------


class Wrapped:
    """An array of another package."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.array


FLOATS = RANDOM.astype(np.float32) / 255
TENSOR = torch.from_numpy(FLOATS).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("given", "tolerance"),
    [
        (FLOATS.astype(">f4"), 0),
        (FLOATS.astype(np.float16), 1e-3),
        (FLOATS.astype(np.longdouble), 0),
        (FLOATS[::-1, ::-1].copy()[::-1, ::-1], 0),
        (np.asfortranarray(FLOATS), 0),
        (np.broadcast_to(FLOATS, (1, 8, 8, 3)), 0),  # read-only
        (np.ma.array(FLOATS, mask=False), 0),
        (Wrapped(FLOATS), 0),
        (Wrapped(RANDOM), 0),
        (TENSOR.bfloat16(), 4e-3),
        (TENSOR.half(), 1e-3),
        (TENSOR.double().requires_grad_(), 0),
        (torch.from_numpy(RANDOM).permute(2, 0, 1), 0),
    ],
)
def test_array_of_any_kind_is_used_as_it_is(given: object, tolerance: float) -> None:
    image = PLAIN.image(given)
    assert (type(image), image.dtype) == (np.ndarray, np.float32)
    assert np.abs(image - FLOATS).max() <= tolerance
    assert torch.from_numpy(image).sum() > 0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (FLOATS.astype(object), TypeError, "object"),
        (FLOATS.astype(complex), TypeError, "complex128"),
        (np.full((8, 8, 3), "a"), TypeError, "U1"),
        (np.ma.array(FLOATS, mask=FLOATS > 0.5), ValueError, "masked.*filled"),
        (np.full((8, 8, 3), 1e300), ValueError, r"1e\+300"),
        (np.float32(3), ValueError, r"\(\)"),
        (TENSOR.to_sparse(), TypeError, "dense"),
        (TENSOR.to("meta"), TypeError, "Tensor"),
        (TENSOR.to(torch.complex64), TypeError, "complex64"),
        (np.full((8, 8), 3, np.uint16), ValueError, r"\[3, 3\]"),
        (Image.new("RGB", (0, 5)), ValueError, "0 x 5"),
    ],
)
def test_array_that_is_not_an_image_is_rejected(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        PLAIN.image(given)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


# -- channels -----------------------------------------------------------------------------------------------------------


def resized(channel: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR)) / 255


@pytest.mark.parametrize("size", [4, 8])
def test_file_with_as_many_channels_as_the_network_is_used_as_it_is(size: int) -> None:
    four = np.dstack([RANDOM, np.where(np.indices((8, 8)).sum(0) % 2, 0, 255).astype(np.uint8)])
    expected = np.dstack([resized(four[..., i], size) for i in range(4)])
    transform = Transform((size, size), 4)
    for mode, kind in (("RGBA", "PNG"), ("RGBA", "TIFF"), ("CMYK", "TIFF")):
        file = encoded(Image.fromarray(four, mode=mode) if mode == "CMYK" else Image.fromarray(four), kind)
        assert np.allclose(transform.image(file), expected, atol=1e-6), "transparent pixels count, too"
    assert np.allclose(transform.resized_image(four), expected, atol=1e-6)
    assert np.allclose(transform.uncropped_image(Image.fromarray(four)), expected, atol=1e-6)
    two = Transform((size, size), 2).image(encoded(Image.fromarray(four[..., 2:]), "PNG"))
    assert np.allclose(two, expected[..., 2:], atol=1e-6)
    with pytest.raises(ValueError, match="3 channels.*4"):
        transform.image(Image.fromarray(RANDOM))


def test_arrays_with_any_number_of_channels_are_resized_by_channel() -> None:
    six = np.dstack([RANDOM, RANDOM[::-1]])
    expected = np.dstack([resized(six[..., i], 4) for i in range(6)])
    assert np.allclose(Transform((4, 4), 6).resized_image(six), expected, atol=1e-6)


def test_pages_are_not_channels() -> None:
    gray = Image.fromarray(RANDOM[..., 0])
    pages = encoded(gray, "TIFF", save_all=True, append_images=[gray] * 5)
    assert PLAIN.image(pages).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="6 pages"):
        Transform((8, 8), 6).image(pages)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RANDOM[:5]), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(np.asarray(open_image(data)), np.asarray(ImageOps.exif_transpose(opened)))


def test_conversion_in_strips_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    images = [
        Image.fromarray(pixels),
        Image.fromarray(pixels[..., 2:]),
        Image.fromarray(pixels).quantize(8),
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        Image.fromarray(pixels[..., 0] / np.float32(255)),
    ]
    whole = [np.asarray(open_image(image)) for image in images]
    monkeypatch.setattr(image_file, "STRIP_PIXELS", 90)
    for image, expected in zip(images, whole, strict=True):
        assert np.array_equal(np.asarray(open_image(image)), expected)
    white = Image.new("RGBA", (30, 50), "white")
    assert np.array_equal(whole[0], np.asarray(Image.alpha_composite(white, images[0]).convert("RGB")))


# -- the network's size -------------------------------------------------------------------------------------------------


def test_pil_image_of_the_networks_size_is_not_enlarged_and_cropped(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "x.png")
    for resize in (None, 30, (40, 50)):
        transform = Transform((24, 32), resize=resize)
        assert np.array_equal(transform.image(image), pixels.astype(np.float32) / 255)
        enlarged = image.resize({None: (32, 24), 30: (40, 30), (40, 50): (50, 40)}[resize], Image.Resampling.BILINEAR)
        left, top = (enlarged.width - 32) // 2, (enlarged.height - 24) // 2
        published = enlarged.crop((left, top, left + 32, top + 24))
        assert np.array_equal(transform.image(tmp_path / "x.png"), np.asarray(published, np.float32) / 255)
    turned = Transform((32, 24), resize=40).image(tmp_path / "x.png")
    assert turned.shape == (32, 24, 3)


# -- limits -------------------------------------------------------------------------------------------------------------


def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "size"),
    [
        (png(13_300, 13_300, 8, 6), "13300"),
        (png(13_300, 13_300, 8, 3, chunk(b"PLTE", bytes(3))), "13300"),
        (
            b"GIF89a" + struct.pack("<HHBBB", 13_000, 13_000, 0x80, 0, 0) + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
            "13000",
        ),
        (png(60_000, 60_000), ""),
    ],
    ids=["RGBA", "palette", "GIF", "beyond Pillow's limit"],
)
def test_image_that_takes_too_much_memory_is_rejected_undecoded(
    content: bytes, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(content)
    assert path.stat().st_size < 1000
    undecoded(monkeypatch)
    with pytest.raises(ValueError, match=rf"large\.png.*{size}.*smaller"):
        PLAIN.image(path)


def test_limit_allows_photographs_of_48_megapixels() -> None:
    for mode, kind in (("RGB", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "WEBP"), ("RGB", "TIFF"), ("CMYK", "JPEG")):
        cost = 8000 * 6000 * (image_file.MODE_BYTES.get(mode, 8) + image_file.DECODER_BYTES.get(kind, 4))
        assert cost <= MAX_IMAGE_BYTES


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_jpeg_file_that_is_too_large_is_decoded_at_a_part_of_its_size(
    reduction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[:128, :64]
    pixels = np.stack([rows * 2, columns * 3, 255 - rows], 2).astype(np.uint8)
    data = encoded(Image.fromarray(pixels), "JPEG", quality=100, subsampling=0)
    height, width = 128 // reduction, 64 // reduction
    means = pixels.reshape(height, reduction, width, reduction, 3).mean((1, 3))
    monkeypatch.setattr(image_file, "MAX_IMAGE_BYTES", 4 * width * height)
    small = open_image(data)
    assert small.size == (width, height)
    assert np.abs(np.asarray(small) - means).max() < 5
    with Image.open(io.BytesIO(data)) as opened:
        with pytest.raises(ValueError, match="64 x 128"):
            open_image(opened)
        assert opened.size == (64, 128), "an image of the caller is not changed"
    monkeypatch.setattr(image_file, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(ValueError, match="64 x 128"):
        open_image(data)


def test_array_too_large_for_floats_is_rejected_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    side = int((MAX_IMAGE_BYTES / FLOAT_BYTES / 3) ** 0.5) + 1
    large = np.broadcast_to(np.zeros((), np.uint8), (side, side, 3))  # which takes no memory
    for convert in (PLAIN.image, PLAIN.uncropped_image):
        with pytest.raises(ValueError, match=rf"{side}x{side}.*too large.*[MG]B"):
            convert(large)


def test_large_array_that_network_cannot_take_is_rejected_before_the_forward_pass(
    demo_net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in ((1200, 1200, 3), (20_000, 20_000, 3), (1, 1100, 1000, 3), (1100, 1000)):
        large = np.broadcast_to(np.zeros((), np.uint8), shape)
        with monkeypatch.context() as patch:
            patch.setattr(Transform, "image", lambda *_: pytest.fail("it was converted"))
            with pytest.raises(ValueError, match=r"64x64.*1\d00x1000|64x64.*(1200x1200|20000x20000).*too large"):
                demo_net.predict(large)
    with pytest.raises(ValueError, match="64x64.*100x100.*too large"):
        demo_net.predict(np.zeros((100, 100, 3), np.float32))
    with pytest.raises(ValueError, match="64x64.*20x1000.*too small"):
        demo_net.predict(np.zeros((20, 1000, 3), np.float32))
    assert demo_net.predict(Image.new("RGB", (1200, 1200)))


class DependsOnValues(nn.Module):
    """A network that runs on images of any size, but not on tensors without values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x.mean((2, 3)) if float(x.mean()) < 1e9 else x.amax((2, 3))


@pytest.mark.parametrize("make", [DependsOnValues, lambda: torchvision.models.squeezenet1_1(weights=None)])
def test_large_array_is_used_where_the_network_takes_it(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_size, "MIN_PIXELS", 1000)
    net = Network(make(), size=64)
    large = np.random.default_rng(0).random((90, 100, 3)).astype(np.float32)
    before = [parameter.data_ptr() for parameter in net.module.parameters()]
    assert np.array_equal(net.image(large), large)
    assert [parameter.data_ptr() for parameter in net.module.parameters()] == before
    monkeypatch.setattr(image_size, "available_memory", lambda _device: 1000)
    with pytest.raises(ValueError, match=r"90x100.*too large.*memory"):
        net.predict(large)
