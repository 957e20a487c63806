"""encode: arrays to the bytes that a browser shows, and arrays to the size they are shown in."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HIGHLIGHT = (255, 64, 160)


def png(image: np.ndarray) -> bytes:
    """(H, W, 3 or 4) or (H, W) uint8 as PNG: exact, for pictures that stand still."""
    buffer = io.BytesIO()
    Image.fromarray(_squeezed(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def jpeg(image: np.ndarray) -> bytes:
    """(H, W, 3) or (H, W) uint8 as JPEG: small and quick, for pictures that move."""
    buffer = io.BytesIO()
    Image.fromarray(_squeezed(image)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def to_uint8(image: np.ndarray) -> np.ndarray:
    """(H, W, C) floats in [0, 1] as (H, W, 3) uint8; gray is repeated."""
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def factor(height: int, width: int, side: int) -> int:
    """The whole number by which a picture is enlarged so that its longer side comes near `side` pixels."""
    return max(1, side // max(height, width))


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """A picture enlarged to about `side` pixels: by a whole number, so that its pixels stay crisp, or, for one that is
    more than half as large already, smoothly.
    """
    height, width = image.shape[:2]
    times = factor(height, width, side)
    if times > 1:
        return image.repeat(times, axis=0).repeat(times, axis=1)
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(_squeezed(image)).resize(size, Image.Resampling.BICUBIC))


def blend(picture: np.ndarray, colors: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    """`colors` laid over `picture`, both (H, W, 3) uint8, with the given weight in [0, 1], a number or (H, W)."""
    weight = np.asarray(weight, np.float32)
    weight = weight[..., None] if weight.ndim == 2 else weight
    return (picture * (1 - weight) + colors * weight + 0.5).astype(np.uint8)


def grayed(picture: np.ndarray) -> np.ndarray:
    """A paler copy of a picture, for colors to be laid over."""
    return blend(picture, np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, axis=2), 0.8)


def draw_box(
    image: np.ndarray, box: tuple[float, float, float, float], color: tuple[int, ...] = HIGHLIGHT, width: int = 2
) -> np.ndarray:
    """A copy of the picture with a frame *around* (top, left, bottom, right), dark-edged to be seen on any ground."""
    canvas = Image.fromarray(_squeezed(image))
    draw = ImageDraw.Draw(canvas)
    top, left, bottom, right = (round(v) for v in box)
    height, width_px = image.shape[:2]
    for grow, ink, thick in ((width + 1, (0, 0, 0), 1), (width, color, width)):
        draw.rectangle(
            (
                max(left - grow, 0),
                max(top - grow, 0),
                min(right - 1 + grow, width_px - 1),
                min(bottom - 1 + grow, height - 1),
            ),
            outline=(*ink, 255)[: image.shape[2]],
            width=thick,
        )
    return np.asarray(canvas)


def beside(panels: list[tuple[str, np.ndarray]], caption: str = "") -> np.ndarray:
    """Pictures side by side on white, a title over each and a caption below: what `save` writes."""
    font, pad, line = ImageFont.load_default(14), 12, 22
    panels = [(title, _on_white(image)) for title, image in panels]
    widths = [max(image.shape[1], round(font.getlength(title))) for title, image in panels]
    lines = caption.splitlines()
    width = max([sum(widths) + pad * (len(panels) + 1), *(round(font.getlength(text)) + 2 * pad for text in lines)])
    tallest = max((image.shape[0] for _, image in panels), default=0)
    page = Image.new("RGB", (width, tallest + 2 * pad + line * (1 + len(lines))), "white")
    draw, x = ImageDraw.Draw(page), pad
    for (title, image), wide in zip(panels, widths, strict=True):
        draw.text((x, pad // 2), title, "black", font)
        page.paste(Image.fromarray(image), (x, pad + line - 4))
        x += wide + pad
    for i, text in enumerate(lines):
        draw.text((pad, tallest + pad + line * (i + 1)), text, "black", font)
    return np.asarray(page)


def _on_white(image: np.ndarray) -> np.ndarray:
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return (image[:, :, :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def _squeezed(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
