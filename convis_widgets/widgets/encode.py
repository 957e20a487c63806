"""encode: arrays to the bytes that a browser shows, and arrays to the size they are shown in."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HIGHLIGHT = (255, 64, 160)
PAGE = 1200  # pixels to which a saved picture grows in width before it goes on in a new row


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
    return in_color((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def in_color(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, C) of any number of channels as (H, W, 3): the first three, or the first one in gray."""
    return pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)


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
    return np.asarray(
        Image.fromarray(_squeezed(image)).resize(smooth_size(height, width, side)[::-1], Image.Resampling.BICUBIC)
    )


def smooth_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of a picture that is enlarged smoothly."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


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


def written(image: np.ndarray, heads: list[tuple[int, int, str]]) -> np.ndarray:
    """A transparent picture (H, W, 4) with words at (x, y), in a gray that can be read on light and dark pages."""
    canvas = Image.fromarray(image)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for x, y, text in heads:
        draw.text((x, y + 1), text, (128, 128, 128, 255), font)
    return np.asarray(canvas)


def beside(panels: list[tuple[str, np.ndarray]], caption: str = "") -> np.ndarray:
    """Pictures on white, side by side in as many rows as they need, a title over each and a caption below."""
    font, pad, line = ImageFont.load_default(14), 12, 22
    rows: list[list[tuple[str, np.ndarray, int]]] = [[]]
    for title, image in panels:
        wide = max(image.shape[1], round(font.getlength(title))) + pad
        if rows[-1] and sum(panel[2] for panel in rows[-1]) + wide + pad > PAGE:
            rows.append([])
        rows[-1].append((title, on_white(image), wide))
    width = max(sum(wide for *_, wide in row) for row in rows) + pad
    lines = [part for text in caption.splitlines() for part in _wrapped(text, font, max(width, PAGE) - 2 * pad)]
    width = max([width, *(round(font.getlength(text)) + 2 * pad for text in lines)])
    heights = [max((image.shape[0] for _, image, _ in row), default=-line) + line + pad for row in rows]
    page = Image.new("RGB", (width, sum(heights) + pad + line * len(lines)), "white")
    draw, y = ImageDraw.Draw(page), pad // 2
    for row, height in zip(rows, heights, strict=True):
        x = pad
        for title, image, wide in row:
            draw.text((x, y), title, "black", font)
            page.paste(Image.fromarray(image), (x, y + line))
            x += wide
        y += height
    for i, text in enumerate(lines):
        draw.text((pad, y + line * i), text, "black", font)
    return np.asarray(page)


def below(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Pictures on white one below the other, the title of each but the first over it."""
    font, line = ImageFont.load_default(14), 22
    panels = [(title, on_white(image)) for title, image in panels]
    width = max(image.shape[1] for _, image in panels)
    page = Image.new("RGB", (width, sum(image.shape[0] + line for _, image in panels) - line), "white")
    y = 0
    for i, (title, image) in enumerate(panels):
        if i:
            ImageDraw.Draw(page).text((0, y + 2), title, "black", font)
            y += line
        page.paste(Image.fromarray(image), (0, y))
        y += image.shape[0]
    return np.asarray(page)


def with_scale(image: np.ndarray, colors: np.ndarray, low: str, high: str) -> np.ndarray:
    """A picture with a color scale (n, 3) under it, and what its two ends mean."""
    font, width = ImageFont.load_default(14), image.shape[1]
    ends = [round(font.getlength(text)) + 8 for text in (low, high)]
    page = Image.new("RGB", (width, image.shape[0] + 24), "white")
    page.paste(Image.fromarray(image), (0, 0))
    draw, y = ImageDraw.Draw(page), image.shape[0] + 4
    draw.text((0, y), low, "black", font)
    draw.text((width - ends[1] + 8, y), high, "black", font)
    bar = Image.fromarray(colors[None]).resize((max(1, width - sum(ends)), 12), Image.Resampling.BILINEAR)
    page.paste(bar, (ends[0], y + 3))
    return np.asarray(page)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The words of a text in lines no wider than `width`."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def legend(entries: list[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    """Names beside squares of their colors, one below the other."""
    font, line = ImageFont.load_default(14), 22
    width = max((round(font.getlength(name)) for name, _ in entries), default=0) + 2 * line
    page = Image.new("RGB", (width, line * max(1, len(entries))), "white")
    draw = ImageDraw.Draw(page)
    for i, (name, color) in enumerate(entries):
        draw.rectangle((2, line * i + 3, 18, line * i + 19), tuple(color))
        draw.text((line + 4, line * i + 2), name, "black", font)
    return np.asarray(page)


def on_white(image: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3 or 4) as (H, W, 3), white where one sees through it."""
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return (image[:, :, :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def _squeezed(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
