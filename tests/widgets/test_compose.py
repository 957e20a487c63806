"""Texts and limits in saved images."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
from PIL import ImageFont
from test_errors import HOSTILE

from convis_widgets.core.network.output import Output
from convis_widgets.widgets.controls.text import text_html
from convis_widgets.widgets.drawing import encode
from convis_widgets.widgets.drawing.bars import legend_html, prediction_bars
from convis_widgets.widgets.drawing.compose import (
    MAX_PAGE_WIDTH,
    draw_labels,
    draw_legend,
    fit_text,
    hstack_panels,
    vstack_panels,
)
from convis_widgets.widgets.drawing.mosaic import Mosaic

SQUARE = np.full((40, 40, 3), (200, 60, 60), np.uint8)
FONT = ImageFont.load_default(14)


@pytest.mark.parametrize("text", HOSTILE)
def test_saved_image_stays_small_whatever_the_texts_are(text: str) -> None:
    page = hstack_panels([(text, SQUARE), ("second", SQUARE)], f"caption: {text}, 43 %")
    assert page.shape[1] <= MAX_PAGE_WIDTH + 24
    assert page.shape[0] <= 40 + 12 * 22 + 60
    assert (page == SQUARE[0, 0]).all(2).sum() == 2 * 40 * 40, "no text covers an image"
    assert vstack_panels([("", SQUARE), (text, SQUARE)]).shape == (102, 40, 3)
    assert draw_legend([(text, (255, 0, 0)), ("b", (0, 255, 0))]).shape[1] <= 700
    draw_labels(np.zeros((40, 40, 4), np.uint8), [(2, 2, text)])


def test_ordinary_titles_and_captions_are_drawn_as_before() -> None:
    """Long titles take the room that they need, up to `MIN_TITLE_WIDTH`, and long captions the whole width."""
    title = "integrated gradients of tench, completeness error 0.01"
    assert hstack_panels([(title, SQUARE)]).shape[1] == round(FONT.getlength(title)) + 24
    words = " ".join(["caption"] * 60)
    short, long = hstack_panels([("", SQUARE)], "caption"), hstack_panels([("", SQUARE)], words)
    lines = (long.shape[0] - short.shape[0]) // 22 + 1
    assert lines == -(-int(FONT.getlength(words)) // (MAX_PAGE_WIDTH - 24))


@pytest.mark.parametrize("width", [30, 60, 300])
def test_fit_text_is_the_longest_that_fits(width: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(400))
    fitted = fit_text(text, FONT, width)
    head, _, tail = fitted.partition("…")
    assert FONT.getlength(fitted) <= width
    assert text.startswith(head)
    assert text.endswith(tail)
    assert FONT.getlength(fitted) > width - 40
    assert fit_text("short", FONT, 100) == "short"


def test_legend_of_200_classes_has_a_line_for_each() -> None:
    legend = draw_legend([(f"class {i}", (255, 0, 0)) for i in range(200)])
    assert legend.shape[0] == 200 * 22
    red = (legend[:, 10] == (255, 0, 0)).all(1)
    assert np.diff(red.astype(int)).clip(0).sum() == 200


@pytest.mark.parametrize(
    "make",
    [
        lambda: hstack_panels([("", np.broadcast_to(np.uint8(0), (300, 300, 3))) for _ in range(6)]),
        lambda: vstack_panels([("", np.broadcast_to(np.uint8(0), (300, 300, 3))) for _ in range(6)]),
        lambda: draw_legend([("class", (255, 0, 0))] * 4000),
        lambda: Mosaic(np.broadcast_to(np.uint8(0), (10**6, 7, 7, 3)), 1000, 10**3),
    ],
)
def test_images_that_are_too_large_are_refused_before_memory_is_taken(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "MAX_PIXELS", 200_000)
    with pytest.raises(ValueError, match=r"\d+x\d+ pixels is too large.*choose fewer or smaller parts"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("text", HOSTILE)
def test_html_has_no_markup_and_no_control_characters_of_names(text: str) -> None:
    output = Output("logits", (3,), lambda scores: scores)
    bars, legend = prediction_bars([(text, 0.43)], output), legend_html([(text, (1, 2, 3))])
    for made in (text_html(text), text_html(text, error=True), bars, legend):
        assert len(html.unescape(re.sub(r"<[^<>]*>", "", made))) <= 620
        assert not re.search(r"<script|[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", made)
