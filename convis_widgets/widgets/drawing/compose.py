"""Composition of images, titles, legends and color bars into one image."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...core.text import one_line
from .encode import check_pixels

MAX_PAGE_WIDTH = 1200  # pixels; wider rows of panels are wrapped
MIN_TITLE_WIDTH = 360  # pixels that a title may take above a narrower image
MAX_CAPTION = 600  # characters of a line of the caption, which is wrapped
MAX_ENTRY_WIDTH = 600  # pixels of a name in a legend

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_labels(image: np.ndarray, labels: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """Copy of an image (H, W, 4) with texts at (x, y), in a gray that is readable on light and dark pages."""
    canvas = Image.fromarray(image)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for x, y, text in labels:
        draw.text((x, y + 1), one_line(text), (128, 128, 128, 255), font)
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
    for text, image in panels:
        title = fit_text(text, font, max(image.shape[1], MIN_TITLE_WIDTH))
        panel_width = max(image.shape[1], round(font.getlength(title))) + pad
        if rows[-1] and sum(panel[2] for panel in rows[-1]) + panel_width + pad > MAX_PAGE_WIDTH:
            rows.append([])
        rows[-1].append((title, composite_on_white(image), panel_width))
    width = max(sum(panel_width for *_, panel_width in row) for row in rows) + pad
    room = max(width, MAX_PAGE_WIDTH) - 2 * pad
    lines = [part for text in caption.split("\n") for part in _wrap(one_line(text, MAX_CAPTION), font, room)]
    width = max([width, *(round(font.getlength(text)) + 2 * pad for text in lines)])
    heights = [max((image.shape[0] for _, image, _ in row), default=-line) + line + pad for row in rows]
    height = sum(heights) + pad + line * len(lines)
    check_pixels(height, width)
    page = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(page), pad // 2
    for row, row_height in zip(rows, heights, strict=True):
        x = pad
        for title, image, panel_width in row:
            draw.text((x, y), title, "black", font)
            page.paste(Image.fromarray(image), (x, y + line))
            x += panel_width
        y += row_height
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
    height = sum(image.shape[0] + line for _, image in panels) - line
    check_pixels(height, width)
    page, y = Image.new("RGB", (width, height), "white"), 0
    for i, (title, image) in enumerate(panels):
        if i:
            ImageDraw.Draw(page).text((0, y + 2), fit_text(title, font, width), "black", font)
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
    """Split a text into lines of at most `width` pixels, between words, and within words that are longer."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
        while font.getlength(lines[-1]) > width:
            count = _fitting(lines[-1], font, width)
            lines[-1:] = [lines[-1][:count], lines[-1][count:]]
    return lines


def _fitting(text: str, font: _Font, width: int) -> int:
    """Number of characters, at least 1, at the beginning of a text that fit into `width` pixels."""
    return max(1, _largest(range(1, len(text) + 1), lambda count: font.getlength(text[:count]) <= width))


def fit_text(text: str, font: _Font, width: int) -> str:
    """Text on one line of at most `width` pixels, cut in the middle if it is longer."""
    text = one_line(text)
    if font.getlength(text) <= width:
        return text
    length = _largest(range(3, len(text)), lambda length: font.getlength(one_line(text, length)) <= width)
    return one_line(text, max(3, length))


def _largest(candidates: range, fits: Callable[[int], bool]) -> int:
    """The largest candidate that fits, where all smaller ones do; 0 if none fits."""
    count = bisect.bisect_left(candidates, True, key=lambda candidate: not fits(candidate))
    return candidates[count - 1] if count else 0


def draw_legend(entries: Sequence[tuple[str, Sequence[int]]]) -> np.ndarray:
    """Legend as an image (H, W, 3): one line per (name, color), with a square of the color; see `legend_html`."""
    font, line = ImageFont.load_default(14), 22
    names = [fit_text(name, font, MAX_ENTRY_WIDTH) for name, _ in entries]
    width = max((round(font.getlength(name)) for name in names), default=0) + 2 * line
    check_pixels(line * len(entries), width)
    page = Image.new("RGB", (width, line * max(1, len(entries))), "white")
    draw = ImageDraw.Draw(page)
    for i, (name, (_, color)) in enumerate(zip(names, entries, strict=True)):
        draw.rectangle((2, line * i + 3, 18, line * i + 19), tuple(color))
        draw.text((line + 4, line * i + 2), name, "black", font)
    return np.asarray(page)


def composite_on_white(image: np.ndarray) -> np.ndarray:
    """Image (H, W, 3 or 4) as (H, W, 3), composited on white."""
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return (image[:, :, :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
