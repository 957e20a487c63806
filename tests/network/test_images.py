"""Every kind of image a user may pass."""

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
from convis_widgets.core.network.image_file import open_image
from convis_widgets.core.network.images import to_array, to_channels_last
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.transform import Transform

PLAIN = Transform((8, 8), 3)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_image_keeps_float_array_unchanged() -> None:
    image = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    assert np.array_equal(PLAIN.image(image), image)


def test_image_scales_uint8_and_expands_gray_to_rgb() -> None:
    image = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert np.allclose(PLAIN.image(image), np.repeat(image[:, :, None], 3, 2) / 255)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 4, 5)])
def test_image_accepts_channels_first_tensor(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape)
    assert np.array_equal(PLAIN.image(tensor), tensor.reshape(3, 4, 5).permute(1, 2, 0).numpy())


def test_to_channels_last_is_a_view() -> None:
    batch = torch.rand(2, 3, 4, 5)
    assert torch.equal(to_channels_last(batch), batch.permute(0, 2, 3, 1))
    assert torch.equal(to_channels_last(batch[:1]), batch[0].permute(1, 2, 0))
    assert torch.equal(to_channels_last(batch[1]), batch[1].permute(1, 2, 0))
    assert to_channels_last(batch).data_ptr() == batch.data_ptr()


def test_to_array_converts_color_to_gray_by_luminance() -> None:
    red = np.zeros((2, 2, 3), np.float32)
    red[..., 0] = 1
    assert np.allclose(to_array(red, 1), 0.299)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((4, 4, 3), np.nan), r"\b48\b.*NaN"),
        (np.random.default_rng(0).normal(size=(4, 4, 3)), "(?i)normali[sz]ed"),
        (np.full((4, 4, 3), 200.0), r"\b255\b"),
        (np.zeros((4, 4, 7)), r"\(4, 4, 7\)"),
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((0, 4, 3)), r"\(0, 4, 3\)"),
    ],
)
def test_image_rejects_array_that_is_not_an_image(bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PLAIN.image(bad)


def test_image_rejects_other_types() -> None:
    for thing in (None, 3, {"a": 1}, object()):
        with pytest.raises(TypeError, match=type(thing).__name__):
            PLAIN.image(thing)


def test_image_rejects_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        PLAIN.image(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name}.*(folder|directory)"):
        PLAIN.image(str(tmp_path))


def test_image_rejects_unreadable_file(tmp_path: Path) -> None:
    text = tmp_path / "note.png"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"note\.png"):
        PLAIN.image(text)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    half = tmp_path / "half.jpg"
    half.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ValueError, match=r"half\.jpg.*(truncated|damaged)"):
        PLAIN.image(half)
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="empty.png"):
        PLAIN.image(empty)


def test_image_rejects_decompression_bomb(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"bomb\.png.*pixels"):
        PLAIN.image(bomb)


def test_image_converts_cmyk_palette_alpha_16_bit_and_1_bit_files(tmp_path: Path) -> None:
    half = Image.new("RGB", (8, 8), (128, 64, 32))
    expected = np.array([128, 64, 32]) / 255
    cmyk = PLAIN.image(save(half.convert("CMYK"), tmp_path / "cmyk.tif"))
    palette = PLAIN.image(save(half.quantize(4), tmp_path / "palette.png"))
    assert np.allclose(cmyk, expected, atol=0.02)
    assert np.allclose(palette, expected, atol=0.03)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert PLAIN.image(save(clear, tmp_path / "clear.png")).min() == 1  # transparent becomes white, not black
    sixteen = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    assert np.allclose(PLAIN.image(save(sixteen, tmp_path / "sixteen.png")), 0.5, atol=0.01)
    bits = Image.new("1", (8, 8), 1)
    assert PLAIN.image(save(bits, tmp_path / "bits.png")).min() == 1


def test_open_image_applies_exif_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # top half white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = open_image(save(image.rotate(180), tmp_path / "turned.png", exif=exif))
    assert np.asarray(turned)[:4].min() == 255
    assert np.asarray(turned)[4:].max() == 0


@pytest.mark.parametrize("size", [(1, 1), (6000, 4000), (3, 500), (500, 3)])
def test_image_resizes_and_crops_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Transform((8, 8), 3, resize=9).image(save(Image.new("RGB", size, (10, 200, 30)), tmp_path / "any.jpg"))
    assert image.shape == (8, 8, 3)
    assert np.allclose(image, np.array([10, 200, 30]) / 255, atol=0.02)


def test_image_accepts_bytes_of_a_file() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "white").save(buffer, "PNG")
    assert PLAIN.image(buffer.getvalue()).shape == (8, 8, 3)


def test_image_resize_and_crop_match_torchvision() -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (73, 117, 3), np.uint8))
    for resize, crop in ((32, 28), (30, 30), (57, 33)):
        for source in (photo, photo.transpose(Image.Transpose.ROTATE_90)):
            theirs = np.asarray(Compose([Resize(resize), CenterCrop(crop)])(source)) / 255
            assert np.allclose(Transform((crop, crop), 3, resize=resize).image(source), theirs, atol=1e-6)


def test_crop_box_in_pixels_of_the_original_image() -> None:
    transform = Transform((224, 224), 3, resize=256)
    assert transform.crop_box(256, 256) == (16, 16, 240, 240)
    left, top, right, bottom = transform.crop_box(1024, 512)
    assert np.allclose((left, top, right, bottom), (512 - 224, 32, 512 + 224, 480))


def test_predict_error_names_expected_and_given_size(demo_net: Network) -> None:
    with pytest.raises(ValueError, match="64x64.*30x40"):
        demo_net.predict(np.zeros((30, 40, 3), np.float32))


@pytest.mark.parametrize(("width", "height"), [(200, 300), (300, 200), (448, 192), (40, 41), (2, 8000), (8000, 2)])
def test_non_square_crop_lies_inside_image(width: int, height: int) -> None:
    transform = Transform((192, 448), 3, resize=224)
    assert (transform.image(Image.new("RGB", (width, height), "white")) == 1).all()
    left, top, right, bottom = transform.crop_box(width, height)
    assert -0.5 <= left < right <= width + 0.5
    assert -0.5 <= top < bottom <= height + 0.5


def test_open_image_rejects_truncated_pil_image(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as opened, pytest.raises(ValueError, match="(?i)truncated|damaged"):
        open_image(opened)


def test_image_accepts_toyscape_scene() -> None:
    scene = demo.images(1)[0]
    assert np.array_equal(Network.demo().image(scene), scene.image)
