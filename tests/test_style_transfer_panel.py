"""StyleTransferPanel, without a browser; what all panels share that begin with a picture is in test_picture_panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import traitlets
from seen import Gate, at, opening, photo, settled, shown, uploaded

from convis_widgets import Network, StyleTransferPanel
from convis_widgets.core import Frame, Run
from convis_widgets.techniques import style_transfer

CONTENTS, STYLES = (
    {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate(names, first)}
    for first, names in ((0, ("a", "b")), (5, ("dots", "lines", "waves", "tiles")))
)
WORDS = {"size": 16, "sizes": 1, "iterations": 3}


@pytest.fixture
def open_panel() -> Iterator[Callable[..., StyleTransferPanel]]:
    with opening(StyleTransferPanel) as make:
        yield lambda net, **words: make(net, CONTENTS, STYLES, **(WORDS | words))


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> StyleTransferPanel:
    return settled(open_panel(tiny))


def last(net: Network, *styles: str, content: str = "a", **words: Any) -> Frame:
    return Run(style_transfer(net, CONTENTS[content], [STYLES[name] for name in styles], **(WORDS | words))).run()


def thumbnails(panel: StyleTransferPanel) -> list[np.ndarray]:
    """Those that are seen, as small as the pictures are."""
    return [shown(view)[::8, ::8] for view in panel.thumbnails if view.layout.display != "none"]


def pixels(picture: np.ndarray) -> np.ndarray:
    return np.floor(picture * 255 + 0.5).astype(np.uint8)


def test_content_and_styles_are_shown_beside_the_picture(panel: StyleTransferPanel) -> None:
    assert np.array_equal(shown(panel.content)[::8, ::8], pixels(CONTENTS["a"]))
    panel.styles = ("lines", "waves")
    settled(panel)
    assert [*map(np.ndarray.tolist, thumbnails(panel))] == [pixels(STYLES[name]).tolist() for name in ("lines", "waves")]
    assert [view.alt for view in panel.thumbnails[:2]] == ["the style lines", "the style waves"]
    panel.images.menu.value = "b"
    settled(panel)
    assert np.array_equal(shown(panel.content)[::8, ::8], pixels(CONTENTS["b"]))
    assert "b in the style of lines and waves" in panel.caption.value


def test_another_style_begins_anew(panel: StyleTransferPanel) -> None:
    assert np.array_equal(panel.frame.image, last(panel.network, "dots").image)
    panel.menus[0].value = "waves"
    settled(panel)
    assert panel.styles == ("waves",)
    assert np.array_equal(panel.frame.image, last(panel.network, "waves").image)


def test_several_styles_are_blended_with_their_weights(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, styles=["dots", "waves", "lines"], style_weights=[5.0, 10.0, 2.0]))
    expected = last(tiny, "dots", "waves", "lines", style_weights=(5.0, 10.0, 2.0))
    assert np.array_equal(panel.frame.image, expected.image)
    assert [menu.value for menu in panel.menus] == ["dots", "waves", "lines"]
    assert [slider.value for slider in panel.weights] == pytest.approx([5, 10, 2])
    assert "a in the style of dots and waves and lines" in panel.caption.value


def test_one_weight_is_for_all(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, styles=("dots", "waves"), style_weights=7.0))
    assert panel.style_weights == (7.0, 7.0)
    assert np.array_equal(panel.frame.image, last(tiny, "dots", "waves", style_weights=7.0).image)


def test_a_weight_is_obeyed_while_it_paints(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, styles=("dots", "waves"), iterations=8)
    run = panel.run
    gate.let(3)
    at(panel, 3)
    panel.weights[1].value = 500.0
    assert panel.style_weights == (5.0, 500.0)
    gate.let(30)
    settled(panel)
    assert panel.run is run
    assert run.state == "done"
    pictures = [STYLES["dots"], STYLES["waves"]]
    found = []
    for before in (3, 4):  # the step in progress may have had the old one
        frames = style_transfer(tiny, CONTENTS["a"], pictures, **(WORDS | {"iterations": 8}))
        for _ in range(before):
            next(frames)
        frames.send({"style_weights": (5.0, 500.0)})
        found.append(np.array_equal(panel.frame.image, [*frames][-1].image))
    assert any(found)
    assert not np.array_equal(panel.frame.image, last(tiny, "dots", "waves", iterations=8).image)


def test_the_next_run_keeps_the_weights(panel: StyleTransferPanel) -> None:
    painted = panel.frame
    panel.weights[0].value = 300.0
    assert panel.frame is painted, "nothing runs that could obey"
    panel.bar.on_start()
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, "dots", style_weights=300.0).image)


def test_with_another_number_of_styles_there_are_as_many_weights(panel: StyleTransferPanel) -> None:
    panel.style_weights = (7.0,)
    panel.menus[1].value = "waves"
    assert (panel.styles, panel.style_weights) == (("dots", "waves"), (7.0, 7.0))
    panel.style_weights = (7.0, 9.0)
    panel.menus[2].value = "tiles"
    assert panel.style_weights == (7.0, 9.0, 9.0)
    panel.weights[2].value = 50.0
    panel.menus[1].value = "none"
    assert (panel.styles, panel.style_weights) == (("dots", "tiles"), (7.0, 50.0)), "those that stay keep theirs"
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, "dots", "tiles", style_weights=(7.0, 50.0)).image)
    panel.styles = ("lines",)
    settled(panel)
    assert panel.style_weights == (7.0,)
    assert [menu.layout.display for menu in panel.menus] == ["", "", "none"], "a menu for one more"
    assert [slider.layout.visibility for slider in panel.weights] == ["visible", "hidden", "hidden"]
    assert len(thumbnails(panel)) == 1


def test_a_style_of_no_weight_stays_so_when_another_is_weighed(tiny: Network, open_panel: Any) -> None:
    """A logarithmic slider has no zero."""
    panel = settled(open_panel(tiny, styles=("dots", "waves"), style_weights=(0.0, 20.0)))
    assert np.array_equal(panel.frame.image, last(tiny, "dots", "waves", style_weights=(0.0, 20.0)).image)
    panel.weights[1].value = 30.0
    assert panel.style_weights == (0.0, 30.0)


def test_what_a_page_rounds_when_it_is_shown_changes_no_weight(panel: StyleTransferPanel) -> None:
    panel.style_weights = (20.0,)
    for slider in panel.weights:
        slider.value = 10**1.301  # of 20, at steps of 0.001; also those of styles that there are not
    assert (panel.style_weights, panel.status.value) == ((20.0,), "")
    panel.weights[0].value = 10**1.31
    assert panel.style_weights == (10**1.31,)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("styles", ("dots", "monet"), "no style 'monet'; there are dots, lines, waves, tiles"),
        ("styles", (), "0 styles were given; give one to 3 of"),
        ("styles", ("dots", "lines", "waves", "tiles"), "4 styles were given"),
        ("style_weights", (1.0, 2.0), "there are 2 weights for 1 styles; give one for each"),
        ("style_weights", (-1.0,), "style_weights=-1 is outside 0 to 10000"),
        ("style_weights", ("much",), "style_weights=.* should be"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    name: str, value: Any, message: str, tiny: Network, panel: StyleTransferPanel
) -> None:
    before = panel.frame
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(panel, name, value)
    with pytest.raises(traitlets.TraitError, match=message):
        StyleTransferPanel(tiny, CONTENTS, STYLES, **{name: value})
    assert (panel.frame, panel.styles, panel.style_weights) == (before, ("dots",), (5.0,))


def test_a_style_is_uploaded_once_more_under_its_name_and_a_broken_one_told(panel: StyleTransferPanel) -> None:
    panel.styles = ("dots", "waves")
    settled(panel)
    uploaded(panel.upload, "cut.png", b"no picture")
    assert "cut.png" in panel.status.value
    assert panel.styles == ("dots", "waves")
    for seed in (1, 2):
        mine = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        uploaded(panel.upload, "mine.png", photo(mine))
        settled(panel)
        assert (panel.styles, panel.status.value) == (("mine.png", "waves"), "")
        assert [menu.value for menu in panel.menus] == ["mine.png", "waves", "none"]
        assert np.array_equal(shown(panel.thumbnails[0]), pixels(panel.network.transform.whole(photo(mine), 128)))
        pictures = [photo(mine), STYLES["waves"]]
        expected = Run(style_transfer(panel.network, CONTENTS["a"], pictures, **WORDS)).run()
        assert np.array_equal(panel.frame.image, expected.image)
    panel.menus[0].value = "lines"
    settled(panel)
    assert panel.styles == ("lines", "waves")


@pytest.mark.parametrize(
    "words",
    [
        {"original_colors": True},
        {"style_scale": 2.0},
        {"begin": "random", "seed": 3},
        {"content_weight": 30.0},
        {"tv_weight": 0.0},
        {"optimizer": "adam"},
        {"size": 50, "sizes": 2},
    ],
)
def test_any_knob_is_that_of_the_technique(words: dict[str, Any], panel: StyleTransferPanel) -> None:
    for name, value in words.items():
        panel.controls[name].value = value
        assert getattr(panel, name) == pytest.approx(value) if isinstance(value, float) else value
    panel.bar.on_start()  # live ones begin nothing anew
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, "dots", **words).image)


def test_a_gray_network_paints_in_styles_that_have_colors(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, styles=("dots", "waves"), original_colors=True))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert panel.frame.image.shape == (16, 16, 1)
