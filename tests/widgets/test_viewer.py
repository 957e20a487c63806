"""The Viewer base class, tested on a minimal widget and on the real ones."""

from __future__ import annotations

import errno
import gc
import os
import re
import stat
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from torch import nn
from widget_helpers import PATIENCE, reached, settled

from convis_widgets import (
    ActivationExplorer,
    FeatureVisualizer,
    FilterGrid,
    NeighborViewer,
    Network,
    OcclusionViewer,
    SaliencyViewer,
    TexturePanel,
    Unit,
    demo,
    link,
    smooth_grad,
)
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.widgets.base.param_box import report_errors
from convis_widgets.widgets.base.params import KnobParam, Number
from convis_widgets.widgets.base.viewer import Panels, Viewer
from convis_widgets.widgets.controls.frame_view import FrameView
from convis_widgets.widgets.controls.run_bar import RunBar


class Counter(Viewer):
    """Counts to `total`, drawing gray squares; waits at each number until it is released."""

    total = Number(3, -1, 100, "Where to stop.", effect="")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(None, **kwargs)
        self.go_on = threading.Semaphore(0)
        self.view, self.bar = FrameView(), RunBar(self.make_run)
        self.slider = ipywidgets.IntSlider()
        self.make_controls()
        self.children = [self.view, self.bar, self.slider, self.row("total"), self.status]
        if self.total < 0:
            raise ValueError("count up")
        self.slider.observe(self._slid, "value")

    def _frames(self, gate: threading.Semaphore) -> Iterator[Frame]:
        for n in range(1, self.total + 1):
            gate.acquire()
            yield Frame(n, self.total, done=n == self.total)

    def make_frames(self) -> Iterator[Frame]:
        return self._frames(self.go_on)

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        self.view.show(np.full((9, 9, 3), 50 * frame.step, np.uint8))

    @report_errors
    def _slid(self, change: dict[str, Any]) -> None:
        self.total = 10 // change["new"]

    def snapshot_panels(self) -> Panels:
        return ([] if self.view.array is None else [("count", self.view.array)]), [f"to {self.total}"]


@pytest.fixture
def counter() -> Iterator[Counter]:
    made = Counter()
    yield made
    made.go_on.release(10)
    made.close()


def alive() -> set[str]:
    gc.collect()
    return set(_instances)


# -- constructing and closing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (Counter, {"total": -1}),
        (Counter, {"total": "three"}),
        (Counter, {"totl": 3}),
        (FilterGrid, {"layer": "relu1"}),
        (FilterGrid, {"unit": ("conv1", 999)}),
        (ActivationExplorer, {"layer": "conv0"}),
        (ActivationExplorer, {"image": []}),
        (SaliencyViewer, {"target": "butterfy"}),
        (SaliencyViewer, {"patch_size": -3}),
        (OcclusionViewer, {"layer": "fc7"}),
    ],
)
def test_viewer_that_fails_to_construct_is_closed(kind: type[Viewer], kwargs: dict[str, Any]) -> None:
    before = alive()
    with pytest.raises((ValueError, TypeError, traitlets.TraitError)):
        kind(**kwargs)
    assert alive() == before


def test_run_bar_does_nothing_after_close(counter: Counter) -> None:
    counter.close()
    counter.bar.on_start()
    counter.bar.on_step()
    assert counter.run is None
    assert not [thread for thread in threading.enumerate() if thread.name == "convis-run"]


# -- handlers ---------------------------------------------------------------------------------------------------------------


def test_handlers_muted_suspends_handlers(counter: Counter) -> None:
    with counter.handlers_muted():
        counter.slider.value = 5
    assert counter.total == 3
    counter.slider.value = 2
    assert counter.total == 5


def test_handlers_muted_restores_handlers_after_error(counter: Counter) -> None:
    with pytest.raises(ZeroDivisionError), counter.handlers_muted():
        1 / 0  # noqa: B018
    counter.slider.value = 5
    assert counter.total == 2


def test_report_errors_shows_handler_error(counter: Counter) -> None:
    counter.slider.value = 1
    counter.slider.value = 0
    assert "ZeroDivisionError" in counter.status.value
    counter.slider.value = 5
    assert counter.total == 2


# -- Runs -------------------------------------------------------------------------------------------------------------------


def test_run_bar_follows_run_until_it_has_stopped(counter: Counter) -> None:
    counter.bar.on_start()
    run = counter.run
    counter.go_on.release()
    reached(run, lambda changed: changed.last is not None)
    counter.stop_run()  # as if the next Run could not be created
    counter.go_on.release()
    assert run.join(PATIENCE)
    assert counter.bar.text.value.startswith("stopped")
    assert (counter.bar.start.disabled, counter.bar.pause.disabled, counter.bar.stop.disabled) == (False, True, True)


def test_run_bar_ignores_replaced_run(counter: Counter) -> None:
    counter.bar.on_start()
    first, gate = counter.run, counter.go_on
    reached(first, lambda run: run.state == "running")
    counter.go_on = threading.Semaphore(0)
    counter.make_run().start()
    gate.release()
    assert first.join(PATIENCE)
    assert counter.bar.run is counter.run
    assert counter.bar.start.disabled, "the second Run is running"


def test_save_waits_until_frame_is_drawn(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Frame may be available for some time before it is drawn."""
    may_draw, tell = threading.Event(), Run._tell
    run = counter.make_run()
    monkeypatch.setattr(run, "_tell", lambda: (run.last is None or may_draw.wait(PATIENCE), tell(run)))
    counter.view.show(np.zeros((9, 9, 3), np.uint8))
    run.start()
    counter.go_on.release()
    while run.last is None:
        run.join(0.001)
    threading.Timer(0.1, may_draw.set).start()
    square = np.asarray(Image.open(counter.save(tmp_path / "x.png")))[28:37, 12:21]
    assert (square == 50).all()


def test_snapshot_text_has_progress_and_error(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    monkeypatch.setattr(
        "convis_widgets.widgets.base.viewer.hstack_panels", lambda _panels, text: texts.append(text.splitlines())
    )
    run = counter.make_run().start()
    counter.go_on.release()
    reached(run, lambda run: run.last is not None)
    counter.snapshot()
    counter.go_on.release(2)
    run.join(PATIENCE)
    counter.snapshot()
    counter.show_error(ValueError("too cold"))
    counter.snapshot()
    counter.clear_error()
    counter.snapshot()
    (first, progress), second, (third, error), fourth = texts
    assert [first, *second, third, *fourth] == ["to 3"] * 4
    assert re.search(r"\b1\b\D+\b3\b", progress)
    assert error == "too cold"


# -- saving -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="file modes need POSIX")
def test_save_respects_umask(tmp_path: Path, umask: int) -> None:
    path = FilterGrid().save(tmp_path / "x.png")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_save_that_fails_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError):
        FilterGrid().save(tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


# -- linking ----------------------------------------------------------------------------------------------------------------


def test_link_starts_from_first_unit() -> None:
    without, explorer, grid = Counter(), ActivationExplorer(unit=("conv2", 7)), FilterGrid()
    assert without.unit is None
    link(without, explorer, grid)
    assert {viewer.unit for viewer in (without, explorer, grid)} == {Unit("conv2", 7)}
    grid.unit = ("conv1", 3)
    assert {viewer.unit for viewer in (without, explorer, grid)} == {Unit("conv1", 3)}


def test_link_prefers_given_unit_over_default_unit() -> None:
    grid, explorer = FilterGrid(), ActivationExplorer(unit=("conv3", 2))
    link(grid, explorer)
    assert grid.unit == explorer.unit == Unit("conv3", 2)


def test_link_survives_closing_one_widget() -> None:
    viewers = Counter(), Counter(), Counter()
    link(*viewers)
    for closed in range(2):
        viewers[closed].close()
        viewers[2].unit = ("conv1", closed + 1)
        assert [viewer.unit is not None and viewer.unit.channel for viewer in viewers[closed + 1 :]] == [closed + 1] * (
            2 - closed
        )
        assert viewers[closed].unit != viewers[2].unit


def test_link_releases_closed_widget() -> None:
    grid, explorer = FilterGrid(), settled(ActivationExplorer())
    link(grid, explorer)
    explorer.close()
    gone = weakref.ref(explorer)
    del explorer
    gc.collect()
    assert gone() is None
    grid.unit = ("conv1", 4)


# -- images and layers ------------------------------------------------------------------------------------------------------


def test_image_trait_accepts_array_and_menu_name() -> None:
    explorer = ActivationExplorer()
    car = demo.images(1, label="car", seed=9)[0].image
    before = explorer.frame
    explorer.image = car
    settled(explorer)
    assert explorer.image is car
    assert explorer.frame is not before
    assert np.array_equal(explorer.frame.image, car)
    name = explorer.images.menu.value
    explorer.images.menu.value = "face"
    explorer.image = car
    assert explorer.images.menu.value == name, "the image is listed once"
    explorer.image = "house"
    assert explorer.images.menu.value == "house"
    explorer.image = car
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        explorer.image = "gone.png"
    assert explorer.image is car


@pytest.mark.parametrize("kind", [FilterGrid, ActivationExplorer])
def test_layer_and_unit_of_other_layer_raise(kind: type[Viewer]) -> None:
    with pytest.raises(ValueError, match="conv2.*conv1"):
        kind(layer="conv2", unit=("conv1", 3))
    assert kind(layer="conv2", unit=("conv2", 3)).unit == Unit("conv2", 3)


def test_link_without_common_traits_raises(tmp_path: Any, own_cache: None) -> None:
    grid, nearest = FilterGrid(), NeighborViewer(images=demo.Toyscape(5))
    for both in ((grid, nearest), (nearest, grid)):
        with pytest.raises(ValueError, match="NeighborViewer|FilterGrid"):
            link(*both)
    with pytest.raises(TypeError, match="(?i)two|different"):
        link(grid, grid)
    grid.unit = ("conv2", 3)
    assert nearest.unit is None
    grid.close()
    nearest.close()


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8)]
)
def test_frame_view_rejects_other_types_and_shapes(image: np.ndarray) -> None:
    view = FrameView("test")
    with pytest.raises(ValueError, match=rf"{image.dtype}.*uint8.*\(H, W, 3"):
        view.show(image)
    view.close()


def test_param_with_unknown_effect_is_rejected() -> None:
    class Misspelled(Counter):
        speed = Number(1, 0, 9, "Speed.", effect="recomptue")

    with pytest.raises(TypeError, match="recomptue.*speed.*Misspelled"):
        Misspelled()


def test_knob_param_of_unknown_knob_suggests_similar_names() -> None:
    with pytest.raises(ValueError, match=r"smooth_grad.*'sample'.*\bsamples\b"):
        KnobParam.of(smooth_grad, "sample")


# -- attributes -------------------------------------------------------------------------------------------------------------


class Stash(Counter):
    """A widget of one's own that keeps what it draws."""

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        super().draw(frame, streaming=streaming)
        self.last_step = frame.step


def test_methods_of_a_widget_may_set_new_attributes() -> None:
    made = Stash()
    made.go_on.release(10)
    made.bar.on_start()
    settled(made)
    assert made.last_step == 3
    assert not made.status.value
    with pytest.raises(AttributeError, match="Stash has no setting 'totl'; did you mean: total"):
        made.totl = 5
    assert made.total == 3
    made.close()


# -- errors in words --------------------------------------------------------------------------------------------------------


def test_error_in_the_forward_pass_names_technique_and_layer() -> None:
    class Fragile(nn.Conv2d):
        broken = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if Fragile.broken:
                raise RuntimeError("the pump is stuck\nand more\nlines")
            return super().forward(x)

    body = nn.Sequential(Fragile(3, 4, 3), nn.ReLU())
    net = Network(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), size=16)
    panel = FeatureVisualizer(net, target=1, iterations=2)
    settled(panel)
    assert not panel.status.value
    Fragile.broken = True
    panel.recompute()
    settled(panel)
    assert panel._error_text == "gradient_ascent, in 0.0: RuntimeError: the pump is stuck"
    Fragile.broken = False
    panel.recompute()
    settled(panel)
    assert not panel.status.value
    panel.close()


def test_constructor_does_not_wait_forever_for_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, waited = threading.Event(), []
    join = Run.join
    monkeypatch.setattr(Run, "join", lambda run, timeout=None: (waited.append(timeout), join(run, timeout and 0.01))[1])

    class Waiting(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if threading.current_thread().name == "convis-run":
                go_on.wait(PATIENCE)
            return super().forward(x)

    net = Network(nn.Sequential(Waiting(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), size=16)
    made = [SaliencyViewer(net), ActivationExplorer(net)]
    assert waited
    assert None not in waited
    go_on.set()
    for viewer in made:
        assert join(viewer.run, PATIENCE)
        assert not viewer.status.value
        viewer.close()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("~no such user/x.png", "home folder in"), ("folder.png", "is a folder"), ("x.tif", "ends in .png"), (None, "None")],
)
def test_save_refuses_in_one_sentence(
    name: Any, pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counter: Counter
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises((ValueError, OSError), match=pattern):
        counter.save(name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("ending", [".png", ".gif"])
def test_full_disk_while_saving_is_said_in_words(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = settled(FeatureVisualizer(iterations=1))

    def full(_part: Path, _path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    path = tmp_path / f"x{ending}"
    with pytest.raises(OSError, match=rf"x{re.escape(ending)} cannot be written, no space left.*; free disk space"):
        panel.save(path)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.chdir(tmp_path)
    {".png": panel.png_button, ".gif": panel.gif_button}[ending].click()
    assert re.search(r"gradient_ascent\.\w+ cannot be written, no space left", panel._error_text)
    panel.close()


def test_link_of_a_widget_without_units_raises() -> None:
    panel, grid = TexturePanel(iterations=1, scales=1, size=16), FilterGrid()
    with pytest.raises(ValueError, match=r"TexturePanel|FilterGrid"):
        link(grid, panel)
    with pytest.raises(ValueError, match="TexturePanel does not show units"):
        panel.unit = ("conv1", 3)
    for viewer in (settled(panel), grid):
        viewer.close()
