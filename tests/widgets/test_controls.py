"""Controls on their own, without a widget."""

from __future__ import annotations

import gc
import re
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
from widget_helpers import PATIENCE, shown

from convis_widgets.core.knob import Knob
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.transform import Transform
from convis_widgets.core.network.unit import Unit
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.core.text import one_line
from convis_widgets.widgets.attribution.heat_panel import HeatPanel
from convis_widgets.widgets.controls import run_bar
from convis_widgets.widgets.controls.color_bar import ColorBar
from convis_widgets.widgets.controls.curve import Curve
from convis_widgets.widgets.controls.frame_view import FrameView
from convis_widgets.widgets.controls.parts import Parts, close_fully
from convis_widgets.widgets.controls.pickers import ClassPicker, ImagePicker, UnitPicker
from convis_widgets.widgets.controls.run_bar import RunBar
from convis_widgets.widgets.controls.sliders import MAX_SLIDER_STEPS, equal_after_rounding, make_control
from convis_widgets.widgets.default_images import default_images, find_image
from convis_widgets.widgets.synthesis.style_picker import StylePicker

BLACK, WHITE = np.zeros((8, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)


# -- the run bar ------------------------------------------------------------------------------------------------------------


def buttons(bar: RunBar) -> set[str]:
    """Names of the enabled buttons."""
    return {name for name in ("start", "pause", "step", "stop") if not getattr(bar, name).disabled}


def test_run_bar_shows_running_during_first_step() -> None:
    resume, started = threading.Event(), threading.Event()

    def frames() -> Iterator[Frame]:
        started.set()
        resume.wait(PATIENCE)
        yield Frame(1, 1, done=True)

    run = Run(frames())
    bar = RunBar(lambda: run)
    assert buttons(bar) == {"start", "step"}
    bar.follow(run)
    bar.on_start()
    assert started.wait(PATIENCE)
    assert buttons(bar) == {"pause", "step", "stop"}
    assert bar.text.value == "running"
    resume.set()
    assert run.join(PATIENCE)
    assert buttons(bar) == {"start", "step"}
    assert re.search(r"^done\b.*\b1\D+1\b", bar.text.value)


def test_run_bar_follows_one_run_at_a_time() -> None:
    first, second = (Run(iter([Frame(n, n, done=True)])) for n in (1, 2))
    bar = RunBar(lambda: None)
    bar.follow(first)
    bar.follow(second)
    first.run()
    assert bar.text.value == ""
    second.run()
    assert re.search(r"^done\b.*\b2\D+2\b", bar.text.value)


# -- pickers ----------------------------------------------------------------------------------------------------------------


def image_picker(images: dict[str, Any]) -> tuple[ImagePicker, list[Any]]:
    picker, values = ImagePicker(images, Transform((8, 8), 3), pytest.fail), []
    picker.observe(lambda change: values.append(change["new"]), "value")
    return picker, values


def test_image_picker_add_to_empty_menu_selects_image() -> None:
    picker, values = image_picker({})
    picker.add("white", WHITE)
    assert picker.menu.value == "white"
    assert picker.value is WHITE
    assert len(values) == 1


@pytest.mark.parametrize("name", ["first", "second"])
def test_image_picker_add_under_existing_name_selects_image(name: str) -> None:
    picker, values = image_picker({"first": BLACK, "second": BLACK + 0.5})
    picker.add(name, WHITE)
    assert picker.menu.value == name
    assert picker.value is WHITE
    assert len(values) == 1, "no other image is shown in between"
    picker.menu.value = "second" if name == "first" else "first"
    picker.menu.value = name
    assert picker.value is WHITE


def test_image_picker_choose_lists_each_image_once() -> None:
    picker, _ = image_picker({"black": BLACK})
    for image in (WHITE, BLACK, "somewhere/file.png", WHITE):
        picker.choose(image)
        assert picker.value is image
    first, numbered, file = picker.menu.options
    assert (first, file) == ("black", "file.png")
    assert numbered == "image 1"


def test_default_images_have_unique_names_from_files(tiny: Network) -> None:
    array = np.zeros((4, 4, 3), np.float32)
    files = ["a/cat.jpg", array, Path("b/cat.jpg"), "dog.png", "c/cat.jpg"]
    images = default_images(tiny, files)
    names = [*images]
    assert names.pop(1).endswith(" 1")
    assert names == ["cat.jpg", "cat.jpg (2)", "dog.png", "cat.jpg (3)"]
    assert all(image is file for image, file in zip(images.values(), files, strict=True))
    assert [*default_images(tiny, "a/cat.jpg")] == ["cat.jpg"]
    assert (find_image("dog", images), find_image("cat.jpg", images)) == ("dog.png", "cat.jpg")
    with pytest.raises(ValueError, match=r"mouse.*cat\.jpg"):
        find_image("mouse", images)


@pytest.mark.parametrize("empty", [[], (), {}])
def test_default_images_rejects_empty_input(empty: Any, tiny: Network) -> None:
    with pytest.raises(ValueError, match="image"):
        default_images(tiny, empty)


def test_class_picker_finds_labels_read_with_line_ends(tiny_module: nn.Module) -> None:
    net = Network(tiny_module, size=16, labels=["cat\n", " dog", "tree frog\r\n", "owl"])
    assert net.labels == ("cat", "dog", "tree frog", "owl")
    assert net.class_index("cat\n") == net.class_index("Cat") == 0
    classes = ClassPicker(net.labels)
    for i, option in enumerate(classes.box.options[1:]):
        classes.box.value = option
        assert classes.value == i


def test_unit_picker_can_leave_layer_that_is_not_on_menu() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    net = Network(nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    units = UnitPicker(net.layers)
    units.value = Unit("0", 2)
    assert (units.menu.value, units.number.value, units.value) == (None, 2, Unit("0", 2))
    units.number.value = 3
    assert units.value == Unit("0", 3)
    units.menu.value = "0.1"
    assert units.value == Unit("0.1", 0)


# -- knobs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("high", "ends"), [(None, 512), (700, 512), (64, 64)])
def test_make_control_slider_ends_at_knob_or_image_limit(high: int | None, ends: int) -> None:
    assert make_control("patch", Knob(1, 512), 10, high=high).max == ends
    assert make_control("patch", Knob(1.0, 512.0), 10.0, high=high).max == ends
    assert make_control("patch", Knob(1.0, 512.0, log=True), 10.0, high=high).max == pytest.approx(np.log10(ends))


def test_make_control_of_bool_is_a_checkbox() -> None:
    for value in (True, False):
        control = make_control("original colors", Knob(types=(bool,)), value)
        assert isinstance(control, ipywidgets.Checkbox)
        assert (control.value, control.description) == (value, "original colors")


@pytest.mark.parametrize(
    ("knob", "value", "kind", "ends"),
    [
        (Knob(1, 500), 30, ipywidgets.IntSlider, (1, 500)),
        (Knob(0, MAX_SLIDER_STEPS), 3, ipywidgets.IntSlider, (0, MAX_SLIDER_STEPS)),
        (Knob(1, MAX_SLIDER_STEPS + 2), 3, ipywidgets.BoundedIntText, (1, MAX_SLIDER_STEPS + 2)),
        (Knob(16, 4096), 128, ipywidgets.BoundedIntText, (16, 4096)),
        (Knob(0), 0, ipywidgets.BoundedIntText, (0, 2**31 - 1)),
        (Knob(0, 5000.0), 1.5, ipywidgets.FloatSlider, (0, 5000)),
    ],
)
def test_make_control_of_wide_int_range_is_a_text_field(knob: Knob, value: float, kind: type, ends: tuple[int, int]) -> None:
    control = make_control("size", knob, value)
    assert type(control) is kind
    assert (control.value, control.min, control.max) == (value, *ends)


def test_make_control_of_choices_is_a_labeled_dropdown() -> None:
    control = make_control("begin with", Knob(choices=("content", "random"), label="begin with"), "random")
    assert isinstance(control, ipywidgets.Dropdown)
    assert (control.options, control.value, control.description) == (("content", "random"), "random", "begin with")


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        (Knob(1 / 255, 64 / 255), 2 / 255),
        (Knob(1.1, 2), 1.4),
        (Knob(1e-4, 0.1, log=True), 0.002),
        (Knob(0.1, 4, log=True), 1.0),
    ],
)
def test_equal_after_rounding_accepts_only_nearest_step(knob: Knob, value: float) -> None:
    control = make_control("lr", knob, value)
    log = isinstance(control, ipywidgets.FloatLogSlider)
    grid = control.min + control.step * np.arange(round((control.max - control.min) / control.step) + 1)
    nearest = int(np.abs(grid - (np.log10(value) if log else value)).argmin())
    for move, same in ((0, True), (1, False), (-1, False)):
        new = grid[nearest + move]
        assert bool(equal_after_rounding(control, 10.0**new if log else new, value)) == same
    assert equal_after_rounding(ipywidgets.IntSlider(3), 3, 3)
    assert not equal_after_rounding(ipywidgets.IntSlider(3), 4, 3)


class Owner(traitlets.HasTraits):
    noise = traitlets.Float(0.1234)
    name = traitlets.Any("b")

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[Any] = []
        self.observe(lambda change: self.changes.append(change["new"]))


# -- Stop -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_run() -> Iterator[tuple[Run, threading.Event]]:
    """A Run inside a step that lasts until the event is set."""
    inside, go_on = threading.Event(), threading.Event()

    def frames() -> Iterator[Frame]:
        inside.set()
        go_on.wait(PATIENCE)
        yield Frame(1, 2)
        yield Frame(2, 2, done=True)

    run = Run(frames()).start()
    assert inside.wait(PATIENCE)
    yield run, go_on
    go_on.set()
    assert run.join(PATIENCE)


def changed_to(label: ipywidgets.Label, text: str) -> bool:
    """Wait until a label shows a text."""
    there = threading.Event()
    label.observe(lambda change: there.set() if text in change["new"] else None, "value")
    return text in label.value or there.wait(PATIENCE)


def test_stop_says_at_once_that_a_step_is_in_progress(slow_run: tuple[Run, threading.Event]) -> None:
    run, go_on = slow_run
    bar = RunBar(lambda: None)
    bar.follow(run)
    bar.on_stop()
    assert bar.text.value == "stopping after the step in progress"
    assert buttons(bar) == set()
    bar.on_start()
    bar.on_step()
    assert run.stopping
    go_on.set()
    assert run.join(PATIENCE)
    assert bar.text.value.startswith("stopped")
    assert buttons(bar) == {"start", "step"}


def test_stop_says_later_that_the_module_does_not_return(
    slow_run: tuple[Run, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_bar, "LATE", 0.01)
    run, go_on = slow_run
    bar = RunBar(lambda: None)
    bar.follow(run)
    bar.on_stop()
    assert changed_to(bar.text, "has not returned for 10 s; restart the kernel if it does not")
    bar.on_stop()
    assert "has not returned" in bar.text.value
    go_on.set()
    assert run.join(PATIENCE)
    assert bar.text.value.startswith("stopped")


def test_late_message_is_not_shown_for_another_run(
    slow_run: tuple[Run, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Any] = []
    monkeypatch.setattr(Run, "call_if_late", lambda _run, _seconds, callback: late.append(callback))
    run, _ = slow_run
    bar = RunBar(lambda: None)
    bar.follow(run)
    bar.on_stop()
    bar.follow(Run(iter([Frame(1)])))
    late[0](run)
    assert bar.text.value == ""
    assert buttons(bar) == {"start", "step"}


def test_bar_of_a_module_that_never_returns_is_released(slow_run: tuple[Run, threading.Event]) -> None:
    bar = RunBar(lambda: None)
    bar.follow(slow_run[0])
    bar.on_stop()
    gone = weakref.ref(bar)
    bar.close()
    del bar
    gc.collect()
    assert gone() is None


# -- images -----------------------------------------------------------------------------------------------------------------


def test_image_that_is_shown_already_replaces_the_one_that_waits() -> None:
    view, image = FrameView(), np.full((9, 9, 3), 7, np.uint8)
    view.show(image)
    pump = view.pump
    pump._clock, pump._last_sent, pump._last_acknowledged, pump._sent = (
        lambda: 0.0,
        0.0,
        0.0,
        5,
    )  # so that the next one waits
    view.stream(lambda: np.full((9, 9, 3), 200, np.uint8))
    view.show(image, boxes=[(1, 2, 3, 4)])
    pump.flush()
    assert np.array_equal(shown(view), image)
    assert np.array_equal(view.array, image)
    assert view.marks == [{"box": [1, 2, 3, 4]}]


# -- closing ----------------------------------------------------------------------------------------------------------------


def frame_view() -> FrameView:
    view = FrameView(on_click=print, on_hover=print)
    view.show(np.zeros((9, 9, 3), np.uint8))
    view.stream(lambda: np.ones((9, 9, 3), np.uint8))
    return view


@pytest.mark.parametrize(
    "make",
    [
        frame_view,
        ColorBar,
        Curve,
        lambda: RunBar(lambda: None),
        lambda: ClassPicker(["a", "b"]),
        lambda: UnitPicker(Network.demo().layers),
        lambda: ImagePicker({"wide": Image.new("RGB", (90, 30))}, Transform((8, 8), 3), print),
        lambda: StylePicker(print),
        lambda: HeatPanel("gradient", print),
        lambda: make_control("strength", Knob(0, 1), 0.5),
    ],
)
def test_close_of_a_control_releases_all_its_parts(make: Any) -> None:
    before = {*_instances}
    control = make()
    assert len(_instances) > len(before)
    close_fully(control)
    assert {*_instances} == before
    if isinstance(control, Parts):
        other = make()
        other.close()
        other.close()
        assert {*_instances} == before


# -- texts ------------------------------------------------------------------------------------------------------------------


def test_class_picker_shows_names_on_one_line_and_finds_them() -> None:
    picker = ClassPicker(["x" * 5000, "two\nlines", "\x1b[31mred"])
    assert picker.box.options[1:] == (f"0  {one_line('x' * 5000, 100)}", "1  two lines", "2  �[31mred")
    for index, option in enumerate(picker.box.options[1:]):
        picker.box.value = option
        assert picker.value == index
