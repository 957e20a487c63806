"""Controls on their own, without a widget."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from torch import nn
from widget_helpers import PATIENCE

from convis_widgets.core.knob import Knob
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.transform import Transform
from convis_widgets.core.network.unit import Unit
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.widgets.controls.pickers import ClassPicker, ImagePicker, UnitPicker
from convis_widgets.widgets.controls.run_bar import RunBar
from convis_widgets.widgets.controls.sliders import MAX_SLIDER_STEPS, equal_after_rounding, make_control
from convis_widgets.widgets.default_images import default_images, find_image

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
