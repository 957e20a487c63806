"""What all image panels share: fooling, DeepDream, inversion, texture, style transfer; without a browser."""

from __future__ import annotations

import gc
import re
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
    """A panel, keywords that make it fast, and a direct call of its technique with the same keywords."""

    kind: type[PicturePanel]
    words: dict[str, Any]
    paint: Callable[..., Iterator[Frame]]
    watched: str  # the scalar whose curve is shown

    def made(self, net: Network, picture: Any = PICTURES["one"], **words: Any) -> Iterator[Frame]:
        return self.paint(net, self.in_channels(net, picture), **(self.words | words))

    @staticmethod
    def in_channels(net: Network, picture: np.ndarray) -> np.ndarray:
        """The image with the network's number of channels."""
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


def step_shown(panel: PicturePanel) -> int:
    """The number of the step that is displayed."""
    return int(re.search(r"\d+", panel.shown_step.value)[0])


def text_of(html: str) -> str:
    """Text without tags."""
    return re.sub("<[^>]*>", "", html)


# -- the image ---------------------------------------------------------------------------------------------------------


def test_image_panel_image_matches_technique(case: Case, panel: PicturePanel) -> None:
    expected = case.last(panel.network)
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert np.array_equal(panel.frame.image, expected.image)
    assert panel.frame.step == expected.step == STEPS
    assert panel.curve.line.x.tolist() == list(range(1, STEPS + 1))
    assert panel.curve.menu.value == case.watched
    assert panel.curve.line.y[-1] == pytest.approx(expected.scalars[case.watched])
    if case.kind is not InversionPanel:
        assert np.array_equal(shown(panel.view), enlarge(to_uint8(expected.image), panel.side))


def test_image_panel_controls_show_technique_defaults(case: Case, panel: PicturePanel) -> None:
    knobs = {*knobs_of(case.kind.technique)} - {"style_weights"}  # shown beside the styles
    assert {*panel.controls} == knobs
    defaults = case.kind.technique.__wrapped__.__kwdefaults__
    for name, made in panel.controls.items():
        wanted = case.words.get(name, defaults[name])
        if wanted is not None:
            assert made.value == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), name


def test_image_panel_restarts_on_image_change(case: Case, panel: PicturePanel) -> None:
    panel.images.menu.value = "two"
    settled(panel)
    assert np.array_equal(panel.frame.image, case.last(panel.network, PICTURES["two"]).image)
    panel.image = PICTURES["one"]
    settled(panel)
    assert panel.images.menu.value == "one"
    assert np.array_equal(panel.frame.image, case.last(panel.network).image)


def test_image_panel_live_knob_affects_current_run(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
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
    first = rates.index(panel.rate)  # the current step used the old rate
    assert first in (2, 3)
    assert {*rates[first:]} == {panel.rate}
    frames = case.made(tiny)
    for _ in range(first):
        expected = next(frames)
    expected = frames.send({"rate": panel.rate})
    for frame in frames:
        expected = frame
    assert np.array_equal(panel.frame.image, expected.image)


def test_image_panel_restarts_on_other_knob_change(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
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


def test_image_panel_none_selects_technique_default(case: Case, panel: PicturePanel) -> None:
    panel.iterations = None
    panel.bar.on_stop()
    panel.bar.on_stop()
    settled(panel)
    assert panel.controls["iterations"].value == case.kind.technique.__wrapped__.__kwdefaults__["iterations"]
    assert not panel.status.value
    if case.kind is not FoolingPanel:
        assert panel.run.last is None or panel.run.last.total > STEPS


def test_image_panel_rejects_invalid_knob_value_and_continues(case: Case, tiny: Network, panel: PicturePanel) -> None:
    for name, value, message in (
        ("iterations", 0, r"iterations.*\b0\b"),
        ("rate", "fast", "rate.*fast"),
    ):
        before = panel.frame
        with pytest.raises(traitlets.TraitError, match=message):
            case.kind(tiny, PICTURES, **{name: value})
        with pytest.raises(traitlets.TraitError, match=message):
            setattr(panel, name, value)
        assert panel.frame is before
    panel.iterations = 2
    assert settled(panel).run.state == "done"
    with pytest.raises(TypeError, match=r"\biteration\b.*\biterations\b"):
        case.kind(tiny, PICTURES, iteration=3)


def test_image_panel_with_gray_network(case: Case, tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert np.array_equal(panel.frame.image, case.last(tiny_gray).image)
    picture = shown(panel.view)
    assert (picture[..., 0] == picture[..., 1]).all()


def test_image_panel_two_panels_run_concurrently(case: Case, tiny: Network, open_panel: Any) -> None:
    two = [open_panel(tiny, {name: PICTURES[name]}) for name in ("one", "two")]
    for panel, name in zip(two, ("one", "two"), strict=True):
        assert np.array_equal(settled(panel).frame.image, case.last(tiny, PICTURES[name]).image)


def descendants(box: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [box, *(w for child in getattr(box, "children", ()) for w in descendants(child))]


def test_image_panel_images_have_tooltips_and_names_are_escaped(case: Case, tiny: Network, open_panel: Any) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    panel = settled(open_panel(tiny, {nasty: PICTURES["one"]}))
    views = [w for w in descendants(panel) if isinstance(w, ipywidgets.Image) and w.layout.visibility != "hidden"]
    assert panel.view in views
    assert all(view.tooltip for view in views)
    assert not [w for w in descendants(panel) if isinstance(w, ipywidgets.HTML) and "<img" in w.value]


# -- the user's files --------------------------------------------------------------------------------------------------


def test_image_panel_uploads_image_and_reports_broken_file(case: Case, panel: PicturePanel) -> None:
    before = panel.frame
    uploaded(panel.images.upload, "cut.png", b"no picture")
    assert "cut.png" in panel.status.value
    assert (panel.frame, panel.images.menu.value) == (before, "one")
    mine = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    uploaded(panel.images.upload, "mine.png", photo(mine))
    settled(panel)
    assert (panel.images.menu.value, panel.status.value) == ("mine.png", "")
    size = {"size": case.words["size"]} if "size" in case.words else {}
    expected = Run(case.paint(panel.network, _as_taken(case, panel.network, mine), **(case.words | size))).run()
    assert np.array_equal(panel.frame.image, expected.image)


def test_image_panel_reports_unreadable_file_and_continues(tiny: Network, tmp_path: Path, open_panel: Any) -> None:
    for name in ("first.png", "second.png"):
        Image.fromarray(np.random.default_rng(7).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "first.png").write_bytes(b"no picture")
    panel = open_panel(tiny, [tmp_path / name for name in ("first.png", "missing.png", "second.png")])
    assert "first.png" in panel.status.value
    panel.images.menu.value = "missing.png"
    assert "missing.png" in panel.status.value
    panel.images.menu.value = "second.png"
    assert settled(panel).status.value == ""
    assert panel.frame.done


def test_image_panel_keeps_previous_result_when_run_fails(
    case: Case, panel: PicturePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown_now() -> tuple[Any, ...]:
        history = ([*panel.history.steps], panel.scrub.value, panel.scrub.max)
        return panel.frame, history, panel._page()[1], panel.shown_step.value, text_of(panel.caption.value)

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
    now = shown_now()
    assert now[:-1] == before[:-1]
    assert now[-1]
    assert before[-1].startswith(now[-1]), "the same caption, without the cost"


def test_image_panel_save_requires_existing_folder(panel: PicturePanel, tmp_path: Path) -> None:
    for name in ("x.png", "x.gif"):
        with pytest.raises(FileNotFoundError, match="missing"):
            panel.save(tmp_path / "missing" / name)


def _as_taken(case: Case, net: Network, pixels: np.ndarray) -> Any:
    """An uploaded image, which unlike an array may be resized; here it has the network's input size."""
    side = {TexturePanel: 16}.get(case.kind) or case.words.get("size", 16)
    return net.transform.whole(Image.fromarray(pixels), side)


def test_image_panel_default_arguments_give_an_image(case: Case) -> None:
    words = {name: value for name, value in case.words.items() if name != "layers"} | {"iterations": 1}
    panel = settled(case.kind(**words))
    assert panel.snapshot().std() > 10
    assert not panel.status.value
    panel.close()


# -- history and files -------------------------------------------------------------------------------------------------


def test_image_panel_scrub_shows_history(case: Case, panel: PicturePanel) -> None:
    assert (panel.scrub.max, panel.scrub.value, step_shown(panel)) == (STEPS - 1, STEPS - 1, STEPS)
    frames = list(case.made(panel.network))
    for index in (0, 3, STEPS - 1):
        panel.scrub.value = index
        assert step_shown(panel) == index + 1
        if case.kind is not InversionPanel:
            assert np.array_equal(shown(panel.view), enlarge(to_uint8(frames[index].image), panel.side))


def test_image_panel_shows_new_run_after_scrubbing_back(case: Case, panel: PicturePanel) -> None:
    panel.scrub.value = 2
    old = shown(panel.view)
    panel.images.menu.value = "two"
    settled(panel)
    assert (panel.scrub.value, step_shown(panel)) == (STEPS - 1, STEPS)
    assert not np.array_equal(shown(panel.view), old)
    if case.kind is not InversionPanel:
        expected = case.last(panel.network, PICTURES["two"]).image
        assert np.array_equal(shown(panel.view), enlarge(to_uint8(expected), panel.side))


def test_image_panel_resumes_from_history_image_if_supported(case: Case, panel: PicturePanel) -> None:
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
    assert np.array_equal(panel.frame.image, fresh.image), "another image restarts from scratch"


def test_image_panel_saves_images_and_films(
    case: Case, panel: PicturePanel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(panel.save(tmp_path / "one.png")) as picture:
        assert np.array_equal(np.asarray(picture), panel.snapshot())
    monkeypatch.chdir(tmp_path)
    panel.png_button.click()
    panel.gif_button.click()
    stem = case.kind.technique.__name__
    assert f"{stem}.gif" in panel.saved.value
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", f"{stem}.png", f"{stem}.gif"}
    with Image.open(f"{stem}.gif") as film:
        assert film.n_frames == STEPS
        film.seek(STEPS - 1)
        seen = np.asarray(film.convert("RGB")).astype(int)
    if case.kind is not InversionPanel:  # 256 colors are enough for a small image
        assert np.abs(seen - enlarge(to_uint8(panel.frame.image), panel.side)).mean() < 12


# -- threads, memory, cleanup ------------------------------------------------------------------------------------------


def tensors() -> tuple[int, int]:
    """The number of tensors alive, and of their elements."""
    gc.collect()
    alive = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return len(alive), sum(one.numel() for one in alive)


def test_image_panel_memory_is_constant_while_paused(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
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


def test_image_panel_close_leaves_nothing_behind(case: Case, tiny: Network, open_panel: Any) -> None:
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


def test_image_panel_failed_construction_leaves_nothing_behind(case: Case, tiny: Network, open_panel: Any) -> None:
    before = {*_instances}
    with pytest.raises((ValueError, traitlets.TraitError)):
        open_panel(tiny, {})
    with pytest.raises((ValueError, traitlets.TraitError)):
        open_panel(tiny, iterations=-1)
    assert {*_instances} == before


# -- cost --------------------------------------------------------------------------------------------------------------

COSTLY = [case for case in CASES if case.kind in (DeepDreamPanel, TexturePanel, StyleTransferPanel)]


@pytest.mark.parametrize("case", COSTLY, ids=lambda case: case.kind.__name__)
def test_image_panel_caption_shows_cost(case: Case, panel: PicturePanel) -> None:
    text = text_of(panel.caption.value)
    assert "1 MB" in text
    assert re.search(r"\d (s|min)\b", text)


@pytest.mark.parametrize("case", COSTLY, ids=lambda case: case.kind.__name__)
def test_image_panel_suggests_size_that_fits_in_memory(
    case: Case, panel: PicturePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["convis_widgets.core.cost"], "memory_left", lambda _device: 4_000_000)
    panel.iterations = 1
    assert settled(panel).run.state == "done"
    panel.size = 1000
    assert panel.run is None, "no run was started"
    text = text_of(panel.status.value)
    assert "1000" in text
    assert "4 MB" in text
    fits = int(re.findall(r"\d+(?!\.?\d| ?[MG]B)", text)[-1])  # not an amount of memory
    assert 24 < fits < 1000
    panel.size = fits + 1
    assert panel.run is None, "one more is too many"
    panel.size = fits
    settled(panel)
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert max(panel.frame.image.shape) == fits
