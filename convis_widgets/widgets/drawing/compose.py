"""Composition of images, titles, legends and color bars into one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_PAGE_WIDTH = 1200  # pixels; wider rows of panels are wrapped

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_labels(image: np.ndarray, labels: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """Copy of an image (H, W, 4) with texts at (x, y), in a gray that is readable on light and dark pages."""
    canvas = Image.fromarray(image)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for x, y, text in labels:
        draw.text((x, y + 1), text, (128, 128, 128, 255), font)
    return np.asarray(canvas)


def hstack_panels(panels: Sequence[tuple[str, np.ndarray]], caption: str = "") -> np.ndarray:
    """Images side by side on white, each under its title, in rows of at most `MAX_PAGE_WIDTH` pixels.

    Parameters
    ----------
    panels : sequence of (title, (H, W, 3 or 4) uint8 array)
    caption : str
        Lines of text below the images; long lines are wrapped.

    Returns
    -------
    (H, W, 3) uint8 array
    """
    font, pad, line = ImageFont.load_default(14), 12, 22
    rows: list[list[tuple[str, np.ndarray, int]]] = [[]]
    for title, image in panels:
        panel_width = max(image.shape[1], round(font.getlength(title))) + pad
        if rows[-1] and sum(panel[2] for panel in rows[-1]) + panel_width + pad > MAX_PAGE_WIDTH:
            rows.append([])
        rows[-1].append((title, composite_on_white(image), panel_width))
    width = max(sum(panel_width for *_, panel_width in row) for row in rows) + pad
    lines = [part for text in caption.splitlines() for part in _wrap(text, font, max(width, MAX_PAGE_WIDTH) - 2 * pad)]
    width = max([width, *(round(font.getlength(text)) + 2 * pad for text in lines)])
    heights = [max((image.shape[0] for _, image, _ in row), default=-line) + line + pad for row in rows]
    page = Image.new("RGB", (width, sum(heights) + pad + line * len(lines)), "white")
    draw, y = ImageDraw.Draw(page), pad // 2
    for row, height in zip(rows, heights, strict=True):
        x = pad
        for title, image, panel_width in row:
            draw.text((x, y), title, "black", font)
            page.paste(Image.fromarray(image), (x, y + line))
            x += panel_width
        y += height
    for i, text in enumerate(lines):
        draw.text((pad, y + line * i), text, "black", font)
    return np.asarray(page)


def vstack_panels(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Images one below the other on white, each under its title except for the first, which has none.

    Parameters
    ----------
    panels : sequence of (title, (H, W, 3 or 4) uint8 array)

    Returns
    -------
    (H, W, 3) uint8 array
    """
    font, line = ImageFont.load_default(14), 22
    panels = [(title, composite_on_white(image)) for title, image in panels]
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


def append_color_bar(image: np.ndarray, colors: np.ndarray, low: str, high: str) -> np.ndarray:
    """Image with a color bar below it.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
    colors : (n, 3) uint8 array
        Colors of the bar, from left to right.
    low, high : str
        Labels of its ends.

    Returns
    -------
    (H + 24, W, 3) uint8 array
    """
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


def _wrap(text: str, font: _Font, width: int) -> list[str]:
    """Split a text into lines of at most `width` pixels, between words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_legend(entries: Sequence[tuple[str, Sequence[int]]]) -> np.ndarray:
    """Legend as an image (H, W, 3): one line per (name, color), with a square of the color; see `legend_html`."""
    font, line = ImageFont.load_default(14), 22
    width = max((round(font.getlength(name)) for name, _ in entries), default=0) + 2 * line
    page = Image.new("RGB", (width, line * max(1, len(entries))), "white")
    draw = ImageDraw.Draw(page)
    for i, (name, color) in enumerate(entries):
        draw.rectangle((2, line * i + 3, 18, line * i + 19), tuple(color))
        draw.text((line + 4, line * i + 2), name, "black", font)
    return np.asarray(page)


def composite_on_white(image: np.ndarray) -> np.ndarray:
    """Image (H, W, 3 or 4) as (H, W, 3), composited on white."""
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return (image[:, :, :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
