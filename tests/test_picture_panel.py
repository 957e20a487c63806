"""What the panels share that begin with a picture: fooling, DeepDream, inversion, texture, style; without a browser."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from seen import PATIENCE, Gate, at, opening, photo, reached, settled, shown, uploaded

from convis_widgets import (
    DeepDreamPanel,
    FoolingPanel,
    InversionPanel,
    Network,
    StyleTransferPanel,
    TexturePanel,
)
from convis_widgets.core import Frame, Run, knobs_of
from convis_widgets.techniques import deep_dream, feature_inversion, fooling, style_transfer, texture
from convis_widgets.widgets.encode import enlarge, to_uint8
from convis_widgets.widgets.picture_panel import PicturePanel

STEPS = 6
PAINTED, PICTURES = (
    {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate(names, first)}
    for first, names in ((10, ("dots", "lines", "waves")), (0, ("one", "two")))
)


@dataclass(frozen=True)
class Case:
    """A panel, the keywords with which it is quick, and its technique, called by hand with the same words."""

    kind: type[PicturePanel]
    words: dict[str, Any]
    paint: Callable[..., Iterator[Frame]]
    watched: str  # the number whose curve is shown

    def made(self, net: Network, picture: Any = PICTURES["one"], **words: Any) -> Iterator[Frame]:
        return self.paint(net, self.in_channels(net, picture), **(self.words | words))

    @staticmethod
    def in_channels(net: Network, picture: np.ndarray) -> np.ndarray:
        """The picture as a network for gray ones takes it."""
        return net.transform.whole(picture)

    def last(self, *args: Any, **words: Any) -> Frame:
        return Run(self.made(*args, **words)).run()


def fooled(net: Network, picture: np.ndarray, **words: Any) -> Iterator[Frame]:
    return fooling(net, np.floor(picture * 255 + 0.5).astype(np.uint8), **words)


def dreamed(net: Network, picture: np.ndarray, *, size: int, **words: Any) -> Iterator[Frame]:
    return deep_dream(net, picture, of="relu", size=size, **words)


def inverted(net: Network, picture: np.ndarray, *, layers: Any, **words: Any) -> Iterator[Frame]:
    return feature_inversion(net, picture, layer=layers, **words)


def stylized(net: Network, picture: np.ndarray, **words: Any) -> Iterator[Frame]:
    return style_transfer(net, picture, PAINTED["dots"], **words)


CASES = [
    Case(FoolingPanel, {"iterations": STEPS, "rate": 0.001}, fooled, "target"),
    Case(DeepDreamPanel, {"size": 24, "octaves": 1, "iterations": STEPS}, dreamed, "objective"),
    Case(InversionPanel, {"layers": ("relu", "relu@2"), "iterations": STEPS // 2}, inverted, "features"),
    Case(TexturePanel, {"size": 24, "sample_size": 16, "sizes": 1, "iterations": STEPS}, texture, "style"),
    Case(StyleTransferPanel, {"size": 24, "sizes": 1, "iterations": STEPS}, stylized, "loss"),
]


@pytest.fixture(params=CASES, ids=lambda case: case.kind.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def open_panel(case: Case) -> Iterator[Callable[..., PicturePanel]]:
    with opening(case.kind) as make:

        def made(net: Network, images: Any = PICTURES, **words: Any) -> PicturePanel:
            styles = {"paintings": PAINTED} if case.kind is StyleTransferPanel else {}
            return make(net, images, **(case.words | styles | words))

        yield made


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> PicturePanel:
    return settled(open_panel(tiny))


# -- what is painted ---------------------------------------------------------------------------------------------------


def test_it_paints_what_the_technique_paints(case: Case, panel: PicturePanel) -> None:
    expected = case.last(panel.network)
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert np.array_equal(panel.frame.image, expected.image)
    assert panel.frame.step == expected.step == STEPS
    assert panel.curve.line.x.tolist() == list(range(1, STEPS + 1))
    assert panel.curve.menu.value == case.watched
    assert panel.curve.line.y[-1] == pytest.approx(expected.scalars[case.watched])
    if case.kind is not InversionPanel:
        assert np.array_equal(shown(panel.view), enlarge(to_uint8(expected.image), panel.side))


def test_every_knob_has_a_control_that_says_what_the_technique_takes(case: Case, panel: PicturePanel) -> None:
    knobs = {*knobs_of(case.kind.technique)} - {"style_weights"}  # which are beside their styles
    assert {*panel.controls} == knobs
    defaults = case.kind.technique.__wrapped__.__kwdefaults__
    for name, made in panel.controls.items():
        wanted = case.words.get(name, defaults[name])
        if wanted is not None:
            assert made.value == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), name


def test_another_picture_begins_anew(case: Case, panel: PicturePanel) -> None:
    panel.images.menu.value = "two"
    settled(panel)
    assert np.array_equal(panel.frame.image, case.last(panel.network, PICTURES["two"]).image)
    panel.image = PICTURES["one"]
    settled(panel)
    assert panel.images.menu.value == "one"
    assert np.array_equal(panel.frame.image, case.last(panel.network).image)


def test_a_live_knob_is_obeyed_by_the_run_in_progress(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny)
    run = panel.run
    gate.let(2)
    at(panel, 2)
    panel.controls["rate"].value = 0.0137
    assert panel.rate == pytest.approx(0.0137)
    gate.let(10 * STEPS)
    settled(panel)
    assert panel.run is run
    rates = [words["rate"] for words in gate.words]
    first = rates.index(panel.rate)  # the step in progress had the old one
    assert first in (2, 3)
    assert {*rates[first:]} == {panel.rate}
    frames = case.made(tiny)
    for _ in range(first):
        expected = next(frames)
    expected = frames.send({"rate": panel.rate})
    for frame in frames:
        expected = frame
    assert np.array_equal(panel.frame.image, expected.image)


def test_any_other_knob_begins_anew(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny)
    first = panel.run
    gate.let(1)
    at(panel, 1)
    panel.controls["iterations"].value = 2
    assert panel.run is not first
    gate.let(100)
    settled(panel)
    assert first.join(PATIENCE)
    assert first.state == "stopped"
    assert np.array_equal(panel.frame.image, case.last(tiny, iterations=2).image)


def test_none_is_what_the_technique_would_take(case: Case, panel: PicturePanel) -> None:
    panel.iterations = None
    panel.bar.on_stop()
    panel.bar.on_stop()
    settled(panel)
    assert panel.controls["iterations"].value == case.kind.technique.__wrapped__.__kwdefaults__["iterations"]
    assert not panel.status.value
    if case.kind is not FoolingPanel:
        assert panel.run.last is None or panel.run.last.total > STEPS


def test_a_value_that_a_knob_does_not_take_is_told_and_the_panel_works_on(
    case: Case, tiny: Network, panel: PicturePanel
) -> None:
    for name, value, message in (
        ("iterations", 0, "iterations=0 is outside 1 to"),
        ("rate", "fast", "rate='fast' should be"),
    ):
        before = panel.frame
        with pytest.raises(traitlets.TraitError, match=message):
            case.kind(tiny, PICTURES, **{name: value})
        with pytest.raises(traitlets.TraitError, match=message):
            setattr(panel, name, value)
        assert panel.frame is before
    panel.iterations = 2
    assert settled(panel).run.state == "done"
    with pytest.raises(TypeError, match="has no keyword 'iteration'; nearest: iterations"):
        case.kind(tiny, PICTURES, iteration=3)


def test_a_gray_network_is_painted_for_in_gray(case: Case, tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert np.array_equal(panel.frame.image, case.last(tiny_gray).image)
    picture = shown(panel.view)
    assert (picture[..., 0] == picture[..., 1]).all()


def test_two_panels_run_at_once(case: Case, tiny: Network, open_panel: Any) -> None:
    two = [open_panel(tiny, {name: PICTURES[name]}) for name in ("one", "two")]
    for panel, name in zip(two, ("one", "two"), strict=True):
        assert np.array_equal(settled(panel).frame.image, case.last(tiny, PICTURES[name]).image)


def every_widget(box: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [box, *(w for child in getattr(box, "children", ()) for w in every_widget(child))]


def test_every_picture_has_words_and_none_of_them_is_run(case: Case, tiny: Network, open_panel: Any) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    panel = settled(open_panel(tiny, {nasty: PICTURES["one"]}))
    views = [w for w in every_widget(panel) if isinstance(w, ipywidgets.Image) and w.layout.visibility != "hidden"]
    assert panel.view in views
    assert all(view.tooltip for view in views)
    assert not [w for w in every_widget(panel) if isinstance(w, ipywidgets.HTML) and "<img" in w.value]


# -- files of the user's -----------------------------------------------------------------------------------------------


def test_a_picture_is_uploaded_and_a_broken_one_told(case: Case, panel: PicturePanel) -> None:
    before = panel.frame
    uploaded(panel.images.upload, "cut.png", b"no picture")
    assert "cut.png" in panel.status.value
    assert panel.status.value.count(". ") == 0, "one sentence"
    assert (panel.frame, panel.images.menu.value) == (before, "one")
    mine = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    uploaded(panel.images.upload, "mine.png", photo(mine))
    settled(panel)
    assert (panel.images.menu.value, panel.status.value) == ("mine.png", "")
    size = {"size": case.words["size"]} if "size" in case.words else {}
    expected = Run(case.paint(panel.network, _as_taken(case, panel.network, mine), **(case.words | size))).run()
    assert np.array_equal(panel.frame.image, expected.image)


def test_a_file_that_is_no_picture_is_told_and_the_next_one_taken(tiny: Network, tmp_path: Path, open_panel: Any) -> None:
    for name in ("first.png", "second.png"):
        Image.fromarray(np.random.default_rng(7).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "first.png").write_bytes(b"no picture")
    panel = open_panel(tiny, [tmp_path / name for name in ("first.png", "missing.png", "second.png")])
    assert "first.png is not a picture that Pillow can read" in panel.status.value
    panel.images.menu.value = "missing.png"
    assert "missing.png does not exist" in panel.status.value
    panel.images.menu.value = "second.png"
    assert settled(panel).status.value == ""
    assert panel.frame.done


def test_when_a_question_has_no_answer_the_one_before_stays_whole(
    case: Case, panel: PicturePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown_now() -> tuple[Any, ...]:
        history = ([*panel.history.steps], panel.scrub.value, panel.scrub.max)
        return panel.frame, history, panel._page()[1], panel.shown_step.value, panel.caption.value.split("; takes")[0]

    def broken(_knobs: Any) -> Iterator[Frame]:
        raise ValueError("it cannot be painted")
        yield

    before = shown_now()
    monkeypatch.setattr(panel, "_frames", broken)
    monkeypatch.setattr(panel, "caption_text", lambda: "another question")
    panel.bar.on_start()
    settled(panel)
    assert panel.run.state == "failed"
    assert "it cannot be painted" in panel.status.value
    told, now = before[-1].partition(">")[2], shown_now()
    assert now[:-1] == before[:-1]
    assert now[-1].partition(">")[2].partition("<")[0] == told.partition("<")[0]


def test_a_film_goes_into_a_folder_that_is_there(panel: PicturePanel, tmp_path: Path) -> None:
    for name in ("x.png", "x.gif"):
        with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist; make it first"):
            panel.save(tmp_path / "missing" / name)


def _as_taken(case: Case, net: Network, pixels: np.ndarray) -> Any:
    """An uploaded photo, which a network may resize, unlike an array; here it has the network's own size."""
    side = {TexturePanel: 16}.get(case.kind) or case.words.get("size", 16)
    return net.transform.whole(Image.fromarray(pixels), side)


def test_one_line_gives_a_picture(case: Case) -> None:
    words = {name: value for name, value in case.words.items() if name != "layers"} | {"iterations": 1}
    panel = settled(case.kind(**words))
    assert panel.snapshot().std() > 10
    assert not panel.status.value
    panel.close()


# -- history and files -------------------------------------------------------------------------------------------------


def test_the_history_is_walked(case: Case, panel: PicturePanel) -> None:
    assert (panel.scrub.max, panel.scrub.value, panel.shown_step.value) == (STEPS - 1, STEPS - 1, f"step {STEPS}")
    frames = list(case.made(panel.network))
    for index in (0, 3, STEPS - 1):
        panel.scrub.value = index
        assert panel.shown_step.value == f"step {index + 1}"
        if case.kind is not InversionPanel:
            assert np.array_equal(shown(panel.view), enlarge(to_uint8(frames[index].image), panel.side))


def test_another_question_is_on_screen_though_one_has_looked_back(case: Case, panel: PicturePanel) -> None:
    panel.scrub.value = 2
    old = shown(panel.view)
    panel.images.menu.value = "two"
    settled(panel)
    assert (panel.scrub.value, panel.shown_step.value) == (STEPS - 1, f"step {STEPS}")
    assert not np.array_equal(shown(panel.view), old)
    if case.kind is not InversionPanel:
        expected = case.last(panel.network, PICTURES["two"]).image
        assert np.array_equal(shown(panel.view), enlarge(to_uint8(expected), panel.side))


def test_it_goes_on_from_a_picture_of_the_past_where_the_technique_can(case: Case, panel: PicturePanel) -> None:
    if case.kind in (FoolingPanel, InversionPanel):
        assert panel.again.layout.display == "none"
        return
    assert panel.again.layout.display != "none"
    panel.scrub.value = 2
    past = panel.history.pictures[2]
    panel.again.click()
    settled(panel)
    assert np.array_equal(panel.frame.image, case.last(panel.network, start=past).image)
    assert not np.array_equal(panel.frame.image, case.last(panel.network).image)
    panel.images.menu.value = "two"
    settled(panel)
    fresh = case.last(panel.network, PICTURES["two"])
    assert np.array_equal(panel.frame.image, fresh.image), "another question begins anew"


def test_pictures_and_films_are_saved(
    case: Case, panel: PicturePanel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(panel.save(tmp_path / "one.png")) as picture:
        assert np.array_equal(np.asarray(picture), panel.snapshot())
    monkeypatch.chdir(tmp_path)
    panel.png_button.click()
    panel.gif_button.click()
    stem = case.kind.technique.__name__
    assert f"saved as {stem}.gif" in panel.saved.value
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", f"{stem}.png", f"{stem}.gif"}
    with Image.open(f"{stem}.gif") as film:
        assert film.n_frames == STEPS
        film.seek(STEPS - 1)
        seen = np.asarray(film.convert("RGB")).astype(int)
    if case.kind is not InversionPanel:  # 256 colors are enough for a small picture
        assert np.abs(seen - enlarge(to_uint8(panel.frame.image), panel.side)).mean() < 12


# -- threads, memory, what is left -------------------------------------------------------------------------------------


def tensors() -> tuple[int, int]:
    """How many there are, and their elements."""
    gc.collect()
    alive = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return len(alive), sum(one.numel() for one in alive)


def test_while_it_pauses_nothing_grows(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny)
    gate.let(2)
    at(panel, 2)
    panel.bar.on_pause()
    gate.let(STEPS)
    reached(panel.run, lambda run: run.state == "paused")
    step = panel.run.last.step
    assert step <= 3

    def look_around() -> tuple[Any, ...]:
        for index in (0, panel.scrub.max):
            panel.scrub.value = index
        panel.snapshot()
        return len(panel.history), len(panel.curve.line.x), panel.run.last.step, len(_instances)

    look_around()
    before = look_around(), tensors()
    for _ in range(10):
        after = look_around()
    assert (after, tensors()) == before
    assert panel.run.state == "paused"
    panel.bar.on_start()
    settled(panel)
    assert panel.run.state == "done"
    assert np.array_equal(panel.frame.image, case.last(tiny).image)


def test_closed_it_leaves_nothing_behind(case: Case, tiny: Network, open_panel: Any) -> None:
    before = {*_instances}
    panel = open_panel(tiny, iterations=400)
    run = panel.run
    panel.close()
    assert panel.run is None
    assert run.join(PATIENCE)
    assert not [type(_instances[i]).__name__ for i in {*_instances} - before]
    for thread in threading.enumerate():
        if thread.name == "convis-run":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_one_that_could_not_be_made_leaves_nothing_behind(case: Case, tiny: Network, open_panel: Any) -> None:
    before = {*_instances}
    with pytest.raises((ValueError, traitlets.TraitError)):
        open_panel(tiny, {})
    with pytest.raises((ValueError, traitlets.TraitError)):
        open_panel(tiny, iterations=-1)
    assert {*_instances} == before


# -- cost --------------------------------------------------------------------------------------------------------------

COSTLY = [case for case in CASES if case.kind in (DeepDreamPanel, TexturePanel, StyleTransferPanel)]


@pytest.mark.parametrize("case", COSTLY, ids=lambda case: case.kind.__name__)
def test_before_it_begins_it_is_told_what_it_takes(case: Case, panel: PicturePanel) -> None:
    assert "takes about 1 s and 1 MB of memory" in panel.caption.value


@pytest.mark.parametrize("case", COSTLY, ids=lambda case: case.kind.__name__)
def test_what_does_not_fit_is_refused_with_a_size_that_does(
    case: Case, panel: PicturePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["convis_widgets.core.cost"], "memory_left", lambda _device: 4_000_000)
    panel.iterations = 1
    assert settled(panel).run.state == "done"
    panel.size = 1000
    assert panel.run is None, "nothing was begun"
    told = panel.status.value
    assert "1000 pixels take" in told
    assert "and 4 MB are left; choose a size of at most" in told
    fits = int(told.split("at most ")[1].split("<")[0])
    assert 24 < fits < 1000
    panel.size = fits + 1
    assert panel.run is None, "one more is too many"
    panel.size = fits
    settled(panel)
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert max(panel.frame.image.shape) == fits
