"""What all image panels share: fooling, DeepDream, inversion, texture, style transfer; without a browser."""

from __future__ import annotations

import gc
import re
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
from widget_helpers import PATIENCE, Gate, at, opening, photo, reached, settled, shown, uploaded

from convis_widgets import (
    DeepDreamPanel,
    FoolingPanel,
    InversionPanel,
    Network,
    StyleTransferPanel,
    TexturePanel,
)
from convis_widgets.core.knob import get_knobs
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import budget
from convis_widgets.techniques.synthesis.deep_dream import deep_dream
from convis_widgets.techniques.synthesis.feature_inversion import feature_inversion
from convis_widgets.techniques.synthesis.fooling import fooling
from convis_widgets.techniques.synthesis.style_transfer import style_transfer
from convis_widgets.techniques.synthesis.texture import texture
from convis_widgets.widgets.drawing.encode import enlarge, to_rgb_uint8
from convis_widgets.widgets.synthesis.image_panel import ImagePanel

STEPS = 6
STYLES, IMAGES = (
    {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate(names, first)}
    for first, names in ((10, ("dots", "lines", "waves")), (0, ("one", "two")))
)


@dataclass(frozen=True)
class Case:
    """A panel, keywords that make it fast, and a direct call of its technique with the same keywords."""

    panel_type: type[ImagePanel]
    kwargs: dict[str, Any]
    technique: Callable[..., Iterator[Frame]]
    default_curve: str  # the scalar whose curve is shown

    def frames(self, net: Network, image: Any = IMAGES["one"], **kwargs: Any) -> Iterator[Frame]:
        return self.technique(net, self.in_channels(net, image), **(self.kwargs | kwargs))

    @staticmethod
    def in_channels(net: Network, image: np.ndarray) -> np.ndarray:
        """The image with the network's number of channels."""
        return net.transform.uncropped_image(image)

    def last_frame(self, *args: Any, **kwargs: Any) -> Frame:
        return Run(self.frames(*args, **kwargs)).run()


def fooling_frames(net: Network, image: np.ndarray, **kwargs: Any) -> Iterator[Frame]:
    return fooling(net, np.floor(image * 255 + 0.5).astype(np.uint8), **kwargs)


def deep_dream_frames(net: Network, image: np.ndarray, *, size: int, **kwargs: Any) -> Iterator[Frame]:
    return deep_dream(net, image, objective="relu", size=size, **kwargs)


def inversion_frames(net: Network, image: np.ndarray, *, layers: Any, **kwargs: Any) -> Iterator[Frame]:
    return feature_inversion(net, image, layers=layers, **kwargs)


def style_transfer_frames(net: Network, image: np.ndarray, **kwargs: Any) -> Iterator[Frame]:
    return style_transfer(net, image, STYLES["dots"], **kwargs)


CASES = [
    Case(FoolingPanel, {"iterations": STEPS, "lr": 0.001}, fooling_frames, "target"),
    Case(DeepDreamPanel, {"size": 24, "octaves": 1, "iterations": STEPS}, deep_dream_frames, "objective"),
    Case(InversionPanel, {"layers": ("relu", "relu@2"), "iterations": STEPS // 2}, inversion_frames, "features"),
    Case(TexturePanel, {"size": 24, "sample_size": 16, "scales": 1, "iterations": STEPS}, texture, "style"),
    Case(StyleTransferPanel, {"size": 24, "scales": 1, "iterations": STEPS}, style_transfer_frames, "loss"),
]


@pytest.fixture(params=CASES, ids=lambda case: case.panel_type.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def open_panel(case: Case) -> Iterator[Callable[..., ImagePanel]]:
    with opening(case.panel_type) as make:

        def open_panel(net: Network, images: Any = IMAGES, **kwargs: Any) -> ImagePanel:
            styles = {"style_images": STYLES} if case.panel_type is StyleTransferPanel else {}
            return make(net, images, **(case.kwargs | styles | kwargs))

        yield open_panel


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> ImagePanel:
    return settled(open_panel(tiny))


def step_shown(panel: ImagePanel) -> int:
    """The number of the step that is displayed."""
    return int(re.search(r"\d+", panel.shown_step.value)[0])


def text_of(html: str) -> str:
    """Text without tags."""
    return re.sub("<[^>]*>", "", html)


# -- the image ---------------------------------------------------------------------------------------------------------


def test_image_panel_image_matches_technique(case: Case, panel: ImagePanel) -> None:
    expected = case.last_frame(panel.network)
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert np.array_equal(panel.frame.image, expected.image)
    assert panel.frame.step == expected.step == STEPS
    assert panel.curve.line.x.tolist() == list(range(1, STEPS + 1))
    assert panel.curve.menu.value == case.default_curve
    assert panel.curve.line.y[-1] == pytest.approx(expected.scalars[case.default_curve])
    if case.panel_type is not InversionPanel:
        assert np.array_equal(shown(panel.view), enlarge(to_rgb_uint8(expected.image), panel.image_side))


def test_image_panel_controls_show_technique_defaults(case: Case, panel: ImagePanel) -> None:
    knobs = {*get_knobs(case.panel_type.technique)} - {"style_weights"}  # shown beside the styles
    assert knobs <= {*panel.controls}
    defaults = case.panel_type.technique.__wrapped__.__kwdefaults__
    for name in knobs:
        expected = case.kwargs.get(name, defaults[name])
        if expected is not None:
            expected = pytest.approx(expected) if isinstance(expected, float) else expected
            assert panel.controls[name].value == expected, name


def test_image_panel_restarts_on_image_change(case: Case, panel: ImagePanel) -> None:
    panel.images.menu.value = "two"
    settled(panel)
    assert np.array_equal(panel.frame.image, case.last_frame(panel.network, IMAGES["two"]).image)
    panel.image = IMAGES["one"]
    settled(panel)
    assert panel.images.menu.value == "one"
    assert np.array_equal(panel.frame.image, case.last_frame(panel.network).image)


def test_image_panel_live_knob_affects_current_run(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny)
    run = panel.run
    gate.let(2)
    at(panel, 2)
    panel.controls["lr"].value = 0.0137
    assert panel.lr == pytest.approx(0.0137)
    gate.let(10 * STEPS)
    settled(panel)
    assert panel.run is run
    rates = [kwargs["lr"] for kwargs in gate.words]
    first = rates.index(panel.lr)  # the current step used the old rate
    assert first in (2, 3)
    assert {*rates[first:]} == {panel.lr}
    frames = case.frames(tiny)
    for _ in range(first):
        expected = next(frames)
    expected = frames.send({"lr": panel.lr})
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
    assert np.array_equal(panel.frame.image, case.last_frame(tiny, iterations=2).image)


def test_image_panel_none_selects_technique_default(case: Case, panel: ImagePanel) -> None:
    panel.iterations = None
    panel.bar.on_stop()
    panel.bar.on_stop()
    settled(panel)
    assert panel.controls["iterations"].value == case.panel_type.technique.__wrapped__.__kwdefaults__["iterations"]
    assert not panel.status.value
    if case.panel_type is not FoolingPanel:
        assert panel.run.last is None or panel.run.last.total > STEPS


def test_image_panel_rejects_invalid_knob_value_and_continues(case: Case, tiny: Network, panel: ImagePanel) -> None:
    for name, value, message in (
        ("iterations", 0, r"iterations.*\b0\b"),
        ("lr", "fast", "lr.*fast"),
    ):
        before = panel.frame
        with pytest.raises(traitlets.TraitError, match=message):
            case.panel_type(tiny, IMAGES, **{name: value})
        with pytest.raises(traitlets.TraitError, match=message):
            setattr(panel, name, value)
        assert panel.frame is before
    panel.iterations = 2
    assert settled(panel).run.state == "done"


def test_image_panel_with_gray_network(case: Case, tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert np.array_equal(panel.frame.image, case.last_frame(tiny_gray).image)
    image = shown(panel.view)
    assert (image[..., 0] == image[..., 1]).all()


def test_image_panel_two_panels_run_concurrently(case: Case, tiny: Network, open_panel: Any) -> None:
    two = [open_panel(tiny, {name: IMAGES[name]}) for name in ("one", "two")]
    for panel, name in zip(two, ("one", "two"), strict=True):
        assert np.array_equal(settled(panel).frame.image, case.last_frame(tiny, IMAGES[name]).image)


def descendants(box: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [box, *(w for child in getattr(box, "children", ()) for w in descendants(child))]


def test_image_panel_escapes_names(case: Case, tiny: Network, open_panel: Any) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    panel = settled(open_panel(tiny, {nasty: IMAGES["one"]}))
    assert not [w for w in descendants(panel) if isinstance(w, ipywidgets.HTML) and "<img" in w.value]


# -- the user's files --------------------------------------------------------------------------------------------------


def test_image_panel_uploads_image_and_reports_broken_file(case: Case, panel: ImagePanel) -> None:
    before = panel.frame
    uploaded(panel.images.upload, "cut.png", b"no image")
    assert "cut.png" in panel.status.value
    assert (panel.frame, panel.images.menu.value) == (before, "one")
    mine = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    uploaded(panel.images.upload, "mine.png", photo(mine))
    settled(panel)
    assert (panel.images.menu.value, panel.status.value) == ("mine.png", "")
    size = {"size": case.kwargs["size"]} if "size" in case.kwargs else {}
    expected = Run(case.technique(panel.network, _as_uploaded(case, panel.network, mine), **(case.kwargs | size))).run()
    assert np.array_equal(panel.frame.image, expected.image)


def test_image_panel_reports_unreadable_file_and_continues(tiny: Network, tmp_path: Path, open_panel: Any) -> None:
    for name in ("first.png", "bad.png", "second.png"):
        Image.fromarray(np.random.default_rng(7).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        open_panel(tiny, tmp_path / "bad.png")
    panel = open_panel(tiny, [tmp_path / name for name in ("first.png", "bad.png", "missing.png", "second.png")])
    assert settled(panel).status.value == ""
    panel.images.menu.value = "bad.png"
    assert "bad.png" in panel.status.value
    panel.images.menu.value = "missing.png"
    assert "missing.png" in panel.status.value
    panel.images.menu.value = "second.png"
    assert settled(panel).status.value == ""
    assert panel.frame.done


def test_image_panel_keeps_previous_result_when_run_fails(
    case: Case, panel: ImagePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> tuple[Any, ...]:
        history = ([*panel.history.steps], panel.scrub.value, panel.scrub.max)
        return panel.frame, history, panel.snapshot_panels()[1], panel.shown_step.value, text_of(panel.caption.value)

    def broken(_knobs: Any) -> Iterator[Frame]:
        raise ValueError("it cannot be computed")
        yield

    before = state()
    monkeypatch.setattr(panel, "load_inputs", lambda: None)
    monkeypatch.setattr(panel, "make_technique_frames", broken)
    monkeypatch.setattr(panel, "caption_text", lambda: "another target")
    panel.bar.on_start()
    settled(panel)
    assert panel.run.state == "failed"
    assert "it cannot be computed" in panel.status.value
    now = state()
    assert now[:-1] == before[:-1]
    assert now[-1]
    assert before[-1].startswith(now[-1]), "the same caption, without the cost"


def test_image_panel_save_requires_existing_folder(panel: ImagePanel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        panel.save(tmp_path / "missing" / "x.gif")


def _as_uploaded(case: Case, net: Network, pixels: np.ndarray) -> Any:
    """An uploaded image, which unlike an array may be resized; here it has the network's input size."""
    side = {TexturePanel: 16}.get(case.panel_type) or case.kwargs.get("size", 16)
    return net.transform.uncropped_image(Image.fromarray(pixels), side)


def test_image_panel_default_arguments_give_an_image(case: Case) -> None:
    kwargs = {name: value for name, value in case.kwargs.items() if name != "layers"} | {"iterations": 1}
    panel = settled(case.panel_type(**kwargs))
    assert panel.snapshot().std() > 10
    assert not panel.status.value
    panel.close()


# -- history and files -------------------------------------------------------------------------------------------------


def test_image_panel_scrub_shows_history(case: Case, panel: ImagePanel) -> None:
    assert (panel.scrub.max, panel.scrub.value, step_shown(panel)) == (STEPS - 1, STEPS - 1, STEPS)
    frames = list(case.frames(panel.network))
    for index in (0, 3, STEPS - 1):
        panel.scrub.value = index
        assert step_shown(panel) == index + 1
        if case.panel_type is not InversionPanel:
            assert np.array_equal(shown(panel.view), enlarge(to_rgb_uint8(frames[index].image), panel.image_side))


def test_image_panel_shows_new_run_after_scrubbing_back(case: Case, panel: ImagePanel) -> None:
    panel.scrub.value = 2
    old = shown(panel.view)
    panel.images.menu.value = "two"
    settled(panel)
    assert (panel.scrub.value, step_shown(panel)) == (STEPS - 1, STEPS)
    assert not np.array_equal(shown(panel.view), old)
    if case.panel_type is not InversionPanel:
        expected = case.last_frame(panel.network, IMAGES["two"]).image
        assert np.array_equal(shown(panel.view), enlarge(to_rgb_uint8(expected), panel.image_side))


def test_image_panel_resumes_from_history_image_if_supported(case: Case, panel: ImagePanel) -> None:
    if case.panel_type in (FoolingPanel, InversionPanel):
        assert panel.resume.layout.display == "none"
        return
    assert panel.resume.layout.display != "none"
    panel.scrub.value = 2
    past = panel.history.images[2]
    panel.resume.click()
    settled(panel)
    assert np.array_equal(panel.frame.image, case.last_frame(panel.network, init_image=past).image)
    assert not np.array_equal(panel.frame.image, case.last_frame(panel.network).image)
    panel.images.menu.value = "two"
    settled(panel)
    fresh = case.last_frame(panel.network, IMAGES["two"])
    assert np.array_equal(panel.frame.image, fresh.image), "another image restarts from scratch"


def test_image_panel_saves_images_and_films(
    case: Case, panel: ImagePanel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(panel.save(tmp_path / "one.png")) as image:
        assert np.array_equal(np.asarray(image), panel.snapshot())
    monkeypatch.chdir(tmp_path)
    panel.png_button.click()
    panel.gif_button.click()
    stem = case.panel_type.technique.__name__
    assert f"{stem}.gif" in panel.saved.value
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", f"{stem}.png", f"{stem}.gif"}
    with Image.open(f"{stem}.gif") as film:
        assert film.n_frames == STEPS
        film.seek(STEPS - 1)
        pixels = np.asarray(film.convert("RGB")).astype(int)
    if case.panel_type is not InversionPanel:  # 256 colors are enough for a small image
        assert np.abs(pixels - enlarge(to_rgb_uint8(panel.frame.image), panel.image_side)).mean() < 12


# -- threads, memory, cleanup ------------------------------------------------------------------------------------------


def tensors() -> tuple[int, int]:
    """The number of tensors alive, and of their elements."""
    gc.collect()
    alive = [tensor for tensor in gc.get_objects() if issubclass(type(tensor), torch.Tensor)]
    return len(alive), sum(tensor.numel() for tensor in alive)


def test_image_panel_memory_is_constant_while_paused(case: Case, tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny)
    gate.let(2)
    at(panel, 2)
    panel.bar.on_pause()
    gate.let(STEPS)
    reached(panel.run, lambda run: run.state == "paused")
    step = panel.run.last.step
    assert step <= 3

    def scrub_and_measure() -> tuple[Any, ...]:
        for index in (0, panel.scrub.max):
            panel.scrub.value = index
        panel.snapshot()
        return len(panel.history), len(panel.curve.line.x), panel.run.last.step, len(_instances)

    scrub_and_measure()
    before = scrub_and_measure(), tensors()
    for _ in range(10):
        after = scrub_and_measure()
    assert (after, tensors()) == before
    assert panel.run.state == "paused"
    panel.bar.on_start()
    settled(panel)
    assert panel.run.state == "done"
    assert np.array_equal(panel.frame.image, case.last_frame(tiny).image)


def test_image_panel_failed_construction_leaves_nothing_behind(case: Case, tiny: Network, open_panel: Any) -> None:
    before = {*_instances}
    with pytest.raises((ValueError, traitlets.TraitError)):
        open_panel(tiny, {})
    with pytest.raises((ValueError, traitlets.TraitError)):
        open_panel(tiny, iterations=-1)
    assert {*_instances} == before


# -- cost --------------------------------------------------------------------------------------------------------------

COSTLY = [case for case in CASES if case.panel_type in (DeepDreamPanel, TexturePanel, StyleTransferPanel)]


@pytest.mark.parametrize("case", COSTLY, ids=lambda case: case.panel_type.__name__)
def test_image_panel_caption_shows_cost(case: Case, panel: ImagePanel) -> None:
    text = text_of(panel.caption.value)
    assert "1 MB" in text
    assert re.search(r"\d (s|min)\b", text)


@pytest.mark.parametrize("case", COSTLY, ids=lambda case: case.panel_type.__name__)
def test_image_panel_suggests_size_that_fits_in_memory(
    case: Case, panel: ImagePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda _device: 4_000_000)
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
