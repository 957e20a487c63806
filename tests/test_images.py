"""Every kind of picture a user may bring."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convis_widgets import demo
from convis_widgets.core import Network, Transform
from convis_widgets.core.images import open_photo, to_array

PLAIN = Transform((8, 8), 3)


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def test_a_float_array_is_used_as_it_is() -> None:
    image = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    assert np.array_equal(PLAIN.image(image), image)


def test_uint8_is_divided_by_255_and_gray_becomes_rgb() -> None:
    image = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert np.allclose(PLAIN.image(image), np.repeat(image[:, :, None], 3, 2) / 255)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 4, 5)])
def test_a_tensor_may_have_its_channels_first(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape)
    assert np.array_equal(PLAIN.image(tensor), tensor.reshape(3, 4, 5).permute(1, 2, 0).numpy())


def test_a_gray_network_takes_a_color_picture_by_luminance() -> None:
    red = np.zeros((2, 2, 3), np.float32)
    red[..., 0] = 1
    assert np.allclose(to_array(red, 1), 0.299)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((4, 4, 3), np.nan), "48 of the picture's values are NaN or infinite"),
        (np.random.default_rng(0).normal(size=(4, 4, 3)), "looks normalized already"),
        (np.full((4, 4, 3), 200.0), "divide it by 255"),
        (np.zeros((4, 4, 7)), r"shape \(4, 4, 7\) is no picture"),
        (np.zeros(5), "is no picture"),
        (np.zeros((0, 4, 3)), "is no picture"),
    ],
)
def test_an_array_that_is_no_picture_is_refused_with_what_to_do(bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PLAIN.image(bad)


def test_what_is_no_picture_at_all_is_refused() -> None:
    for thing in (None, 3, {"a": 1}, object()):
        with pytest.raises(TypeError, match="is no picture; give a path"):
            PLAIN.image(thing)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg does not exist"):
        PLAIN.image(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        PLAIN.image(str(tmp_path))


def test_a_file_that_is_no_picture_or_is_cut_off_is_named(tmp_path: Path) -> None:
    text = tmp_path / "note.png"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"note\.png is not a picture that Pillow can read"):
        PLAIN.image(text)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    half = tmp_path / "half.jpg"
    half.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg cannot be read as a picture .* damaged or cut off"):
        PLAIN.image(half)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="empty.png"):
        PLAIN.image(empty)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match="too many pixels"):
        PLAIN.image(bomb)


def test_odd_modes_become_what_one_sees(tmp_path: Path) -> None:
    half = Image.new("RGB", (8, 8), (128, 64, 32))
    expected = np.array([128, 64, 32]) / 255
    cmyk = PLAIN.image(save(half.convert("CMYK"), tmp_path / "cmyk.tif"))
    palette = PLAIN.image(save(half.quantize(4), tmp_path / "palette.png"))
    assert np.allclose(cmyk, expected, atol=0.02)
    assert np.allclose(palette, expected, atol=0.03)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert PLAIN.image(save(clear, tmp_path / "clear.png")).min() == 1  # transparent is the white page, not black
    sixteen = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    assert np.allclose(PLAIN.image(save(sixteen, tmp_path / "sixteen.png")), 0.5, atol=0.01)
    bits = Image.new("1", (8, 8), 1)
    assert PLAIN.image(save(bits, tmp_path / "bits.png")).min() == 1


def test_a_picture_rotated_by_exif_stands_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "black")
    picture.paste("white", (0, 0, 8, 4))  # top half white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = open_photo(save(picture.rotate(180), tmp_path / "turned.png", exif=exif))
    assert np.asarray(turned)[:4].min() == 255
    assert np.asarray(turned)[4:].max() == 0


@pytest.mark.parametrize("size", [(1, 1), (6000, 4000), (3, 500), (500, 3)])
def test_any_size_is_resized_and_cropped(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Transform((8, 8), 3, resize=9).image(save(Image.new("RGB", size, (10, 200, 30)), tmp_path / "any.jpg"))
    assert image.shape == (8, 8, 3)
    assert np.allclose(image, np.array([10, 200, 30]) / 255, atol=0.02)


def test_bytes_of_a_file_are_a_photo() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "white").save(buffer, "PNG")
    assert PLAIN.image(buffer.getvalue()).shape == (8, 8, 3)


def test_resize_and_crop_agree_with_torchvision() -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (73, 117, 3), np.uint8))
    for resize, crop in ((32, 28), (30, 30), (57, 33)):
        for source in (photo, photo.transpose(Image.Transpose.ROTATE_90)):
            theirs = np.asarray(Compose([Resize(resize), CenterCrop(crop)])(source)) / 255
            assert np.allclose(Transform((crop, crop), 3, resize=resize).image(source), theirs, atol=1e-6)


def test_the_crop_box_says_what_the_network_sees_of_a_photo() -> None:
    transform = Transform((224, 224), 3, resize=256)
    assert transform.crop_box(256, 256) == (16, 16, 240, 240)
    left, top, right, bottom = transform.crop_box(1024, 512)
    assert np.allclose((left, top, right, bottom), (512 - 224, 32, 512 + 224, 480))


def test_a_network_says_which_size_it_takes_when_an_array_does_not_fit(demo_net: Network) -> None:
    with pytest.raises(
        ValueError, match=r"takes 64x64 pictures and cannot run on 30x40, which may be too small .*; give a picture of 64x64"
    ):
        demo_net.predict(np.zeros((30, 40, 3), np.float32))


@pytest.mark.parametrize(("width", "height"), [(200, 300), (300, 200), (448, 192), (40, 41), (2, 8000), (8000, 2)])
def test_a_crop_that_is_not_square_is_covered_by_any_photo(width: int, height: int) -> None:
    transform = Transform((192, 448), 3, resize=224)
    assert (transform.image(Image.new("RGB", (width, height), "white")) == 1).all()
    left, top, right, bottom = transform.crop_box(width, height)
    assert -0.5 <= left < right <= width + 0.5
    assert -0.5 <= top < bottom <= height + 0.5


def test_an_opened_file_that_is_cut_off_is_refused_like_its_path(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as opened, pytest.raises(ValueError, match="what was opened cannot be read as a picture"):
        open_photo(opened)


def test_a_scene_of_toyscape_stands_for_its_picture() -> None:
    scene = demo.images(1)[0]
    assert np.array_equal(Network.demo().image(scene), scene.image)
