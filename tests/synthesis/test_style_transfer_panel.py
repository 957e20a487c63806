"""StyleTransferPanel, without a browser; tests shared by all image panels are in test_image_panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import traitlets
from widget_helpers import Gate, at, opening, photo, settled, shown, uploaded

from convis_widgets import Network, StyleTransferPanel
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.synthesis.style_transfer import style_transfer

CONTENTS, STYLES = (
    {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate(names, first)}
    for first, names in ((0, ("a", "b")), (5, ("dots", "lines", "waves", "tiles")))
)
KNOBS = {"size": 16, "scales": 1, "iterations": 3}


@pytest.fixture
def open_panel() -> Iterator[Callable[..., StyleTransferPanel]]:
    with opening(StyleTransferPanel) as make:
        yield lambda net, **kwargs: make(net, CONTENTS, STYLES, **(KNOBS | kwargs))


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> StyleTransferPanel:
    return settled(open_panel(tiny))


def last_frame(net: Network, *styles: str, content: str = "a", **kwargs: Any) -> Frame:
    return Run(style_transfer(net, CONTENTS[content], [STYLES[name] for name in styles], **(KNOBS | kwargs))).run()


def thumbnails(panel: StyleTransferPanel) -> list[np.ndarray]:
    """The visible thumbnails, reduced to the size of the images."""
    return [shown(view)[::8, ::8] for view in panel.thumbnails if view.layout.display != "none"]


def text_of(widget: Any) -> str:
    """The text of an HTML widget, without tags."""
    return re.sub("<[^>]*>", " ", widget.value)


def pixels(image: np.ndarray) -> np.ndarray:
    return np.floor(image * 255 + 0.5).astype(np.uint8)


def test_style_transfer_panel_shows_content_and_styles(panel: StyleTransferPanel) -> None:
    assert np.array_equal(shown(panel.content_view)[::8, ::8], pixels(CONTENTS["a"]))
    panel.styles = ("lines", "waves")
    settled(panel)
    assert [*map(np.ndarray.tolist, thumbnails(panel))] == [pixels(STYLES[name]).tolist() for name in ("lines", "waves")]
    for view, name in zip(panel.thumbnails[:2], ("lines", "waves"), strict=True):
        assert name in view.alt
    panel.images.menu.value = "b"
    settled(panel)
    assert np.array_equal(shown(panel.content_view)[::8, ::8], pixels(CONTENTS["b"]))
    assert re.search(r"\bb\b.*\blines\b.*\bwaves\b", text_of(panel.caption))


def test_style_transfer_panel_restarts_on_style_change(panel: StyleTransferPanel) -> None:
    assert np.array_equal(panel.frame.image, last_frame(panel.network, "dots").image)
    panel.controls["styles"].menus[0].value = "waves"
    settled(panel)
    assert panel.styles == ("waves",)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, "waves").image)


def test_style_transfer_panel_blends_weighted_styles(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, styles=["dots", "waves", "lines"], style_weights=[5.0, 10.0, 2.0]))
    expected = last_frame(tiny, "dots", "waves", "lines", style_weights=(5.0, 10.0, 2.0))
    assert np.array_equal(panel.frame.image, expected.image)
    assert [menu.value for menu in panel.controls["styles"].menus] == ["dots", "waves", "lines"]
    assert [slider.value for slider in panel.controls["styles"].sliders] == pytest.approx([5, 10, 2])
    assert re.search(r"\ba\b.*\bdots\b.*\bwaves\b.*\blines\b", text_of(panel.caption))


def test_style_transfer_panel_applies_single_weight_to_all_styles(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, styles=("dots", "waves"), style_weights=7.0))
    assert panel.style_weights == (7.0, 7.0)
    assert np.array_equal(panel.frame.image, last_frame(tiny, "dots", "waves", style_weights=7.0).image)


def test_style_transfer_panel_weights_are_live(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, styles=("dots", "waves"), iterations=8)
    run = panel.run
    gate.let(3)
    at(panel, 3)
    panel.controls["styles"].sliders[1].value = 500.0
    assert panel.style_weights == (5.0, 500.0)
    gate.let(30)
    settled(panel)
    assert panel.run is run
    assert run.state == "done"
    images = [STYLES["dots"], STYLES["waves"]]
    matches = []
    for before in (3, 4):  # the current step may have used the old weight
        frames = style_transfer(tiny, CONTENTS["a"], images, **(KNOBS | {"iterations": 8}))
        for _ in range(before):
            next(frames)
        frames.send({"style_weights": (5.0, 500.0)})
        matches.append(np.array_equal(panel.frame.image, [*frames][-1].image))
    assert any(matches)
    assert not np.array_equal(panel.frame.image, last_frame(tiny, "dots", "waves", iterations=8).image)


def test_style_transfer_panel_keeps_weights_for_next_run(panel: StyleTransferPanel) -> None:
    before = panel.frame
    panel.controls["styles"].sliders[0].value = 300.0
    assert panel.frame is before, "no run is active"
    panel.bar.on_start()
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, "dots", style_weights=300.0).image)


def test_style_transfer_panel_adapts_weights_to_number_of_styles(panel: StyleTransferPanel) -> None:
    panel.style_weights = (7.0,)
    panel.controls["styles"].menus[1].value = "waves"
    assert (panel.styles, panel.style_weights) == (("dots", "waves"), (7.0, 7.0))
    panel.style_weights = (7.0, 9.0)
    panel.controls["styles"].menus[2].value = "tiles"
    assert panel.style_weights == (7.0, 9.0, 9.0)
    panel.controls["styles"].sliders[2].value = 50.0
    panel.controls["styles"].menus[1].value = "none"
    assert (panel.styles, panel.style_weights) == (("dots", "tiles"), (7.0, 50.0)), "the remaining styles keep their weights"
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, "dots", "tiles", style_weights=(7.0, 50.0)).image)
    panel.styles = ("lines",)
    settled(panel)
    assert panel.style_weights == (7.0,)
    assert [menu.layout.display for menu in panel.controls["styles"].menus] == ["", "", "none"], "a menu for one more"
    assert [slider.layout.visibility for slider in panel.controls["styles"].sliders] == ["visible", "hidden", "hidden"]
    assert len(thumbnails(panel)) == 1


def test_style_transfer_panel_keeps_weight_of_zero(tiny: Network, open_panel: Any) -> None:
    """A logarithmic slider has no zero."""
    panel = settled(open_panel(tiny, styles=("dots", "waves"), style_weights=(0.0, 20.0)))
    assert np.array_equal(panel.frame.image, last_frame(tiny, "dots", "waves", style_weights=(0.0, 20.0)).image)
    panel.controls["styles"].sliders[1].value = 30.0
    assert panel.style_weights == (0.0, 30.0)


def test_style_transfer_panel_ignores_slider_rounding(panel: StyleTransferPanel) -> None:
    panel.style_weights = (20.0,)
    for slider in panel.controls["styles"].sliders:
        slider.value = 10**1.301  # 20 rounded to slider steps of 0.001; also on unused sliders
    assert (panel.style_weights, panel.status.value) == ((20.0,), "")
    panel.controls["styles"].sliders[0].value = 10**1.31
    assert panel.style_weights == (10**1.31,)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("styles", ("dots", "monet"), "monet.*dots, lines, waves, tiles"),
        ("styles", (), r"(?=.*\b0\b)(?=.*\b3\b)"),
        ("styles", ("dots", "lines", "waves", "tiles"), r"\b4\b"),
        ("style_weights", (1.0, 2.0), r"(?=.*\b2\b)(?=.*\b1\b)"),
        ("style_weights", (-1.0,), r"style_weights.*-1\b.*10,?000"),
        ("style_weights", ("much",), "style_weights"),
    ],
)
def test_style_transfer_panel_rejects_invalid_values(
    name: str, value: Any, message: str, tiny: Network, panel: StyleTransferPanel
) -> None:
    before = panel.frame
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(panel, name, value)
    with pytest.raises(traitlets.TraitError, match=message):
        StyleTransferPanel(tiny, CONTENTS, STYLES, **{name: value})
    assert (panel.frame, panel.styles, panel.style_weights) == (before, ("dots",), (5.0,))


def test_style_transfer_panel_uploads_style_and_reports_broken_file(panel: StyleTransferPanel) -> None:
    panel.styles = ("dots", "waves")
    settled(panel)
    uploaded(panel.controls["styles"].upload, "cut.png", b"no image")
    assert "cut.png" in panel.status.value
    assert panel.styles == ("dots", "waves")
    assert panel.controls["styles"].upload.value == (), "its copy of the file is dropped"
    for seed, name in ((1, "mine.png"), (2, "mine.png (2)")):
        mine = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        uploaded(panel.controls["styles"].upload, "mine.png", photo(mine))
        settled(panel)
        assert (panel.styles, panel.status.value) == ((name, "waves"), "")
        assert panel.controls["styles"].upload.value == ()
        assert [menu.value for menu in panel.controls["styles"].menus] == [name, "waves", "none"]
        assert np.array_equal(shown(panel.thumbnails[0]), pixels(panel.network.transform.uncropped_image(photo(mine), 128)))
        images = [photo(mine), STYLES["waves"]]
        expected = Run(style_transfer(panel.network, CONTENTS["a"], images, **KNOBS)).run()
        assert np.array_equal(panel.frame.image, expected.image)
    panel.controls["styles"].menus[0].value = "lines"
    settled(panel)
    assert panel.styles == ("lines", "waves")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"original_colors": True},
        {"style_scale": 2.0},
        {"init": "random", "seed": 3},
        {"content_weight": 30.0},
        {"tv_weight": 0.0},
        {"optimizer": "adam"},
        {"size": 50, "scales": 2},
    ],
)
def test_style_transfer_panel_knobs_match_technique(kwargs: dict[str, Any], panel: StyleTransferPanel) -> None:
    for name, value in kwargs.items():
        panel.controls[name].value = value
        assert getattr(panel, name) == (pytest.approx(value) if isinstance(value, float) else value)
    panel.bar.on_start()  # live knobs do not restart
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, "dots", **kwargs).image)


def test_style_transfer_panel_with_gray_network(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, styles=("dots", "waves"), original_colors=True))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert panel.frame.image.shape == (16, 16, 1)
