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
from seen import PATIENCE
from torch import nn

from convis_widgets.core import Frame, Knob, Network, Run, Transform, Unit
from convis_widgets.widgets.controls import FIELD, ClassPicker, ImagePicker, RunBar, UnitPicker, control, join, rounded
from convis_widgets.widgets.gallery import gallery, named

BLACK, WHITE = np.zeros((8, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)


# -- the run bar ------------------------------------------------------------------------------------------------------------


def buttons(bar: RunBar) -> set[str]:
    """Names of the enabled buttons."""
    return {name for name in ("start", "pause", "step", "stop") if not getattr(bar, name).disabled}


def test_run_bar_shows_running_during_first_step() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def frames() -> Iterator[Frame]:
        begun.set()
        go_on.wait(PATIENCE)
        yield Frame(1, 1, done=True)

    run = Run(frames())
    bar = RunBar(lambda: run)
    assert buttons(bar) == {"start", "step"}
    bar.follow(run)
    bar.on_start()
    assert begun.wait(PATIENCE)
    assert buttons(bar) == {"pause", "step", "stop"}
    assert bar.text.value == "running"
    go_on.set()
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


def picker(images: dict[str, Any]) -> tuple[ImagePicker, list[Any]]:
    made, seen = ImagePicker(images, Transform((8, 8), 3), pytest.fail), []
    made.observe(lambda change: seen.append(change["new"]), "value")
    return made, seen


def test_image_picker_add_to_empty_menu_selects_image() -> None:
    made, seen = picker({})
    made.add("white", WHITE)
    assert made.menu.value == "white"
    assert made.value is WHITE
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["first", "second"])
def test_image_picker_add_under_existing_name_selects_image(name: str) -> None:
    made, seen = picker({"first": BLACK, "second": BLACK + 0.5})
    made.add(name, WHITE)
    assert made.menu.value == name
    assert made.value is WHITE
    assert len(seen) == 1, "no other image is shown in between"
    made.menu.value = "second" if name == "first" else "first"
    made.menu.value = name
    assert made.value is WHITE


def test_image_picker_choose_lists_each_image_once() -> None:
    made, _ = picker({"black": BLACK})
    for picture in (WHITE, BLACK, "somewhere/photo.png", WHITE):
        made.choose(picture)
        assert made.value is picture
    first, numbered, file = made.menu.options
    assert (first, file) == ("black", "photo.png")
    assert numbered.endswith(" 1")


def test_default_images_have_unique_names_from_files(tiny: Network) -> None:
    array = np.zeros((4, 4, 3), np.float32)
    files = ["a/cat.jpg", array, Path("b/cat.jpg"), "dog.png", "c/cat.jpg"]
    images = gallery(tiny, files)
    names = [*images]
    assert names.pop(1).endswith(" 1")
    assert names == ["cat.jpg", "cat.jpg (2)", "dog.png", "cat.jpg (3)"]
    assert all(one is other for one, other in zip(images.values(), files, strict=True))
    assert [*gallery(tiny, "a/cat.jpg")] == ["cat.jpg"]
    assert (named("dog", images), named("cat.jpg", images)) == ("dog.png", "cat.jpg")
    with pytest.raises(ValueError, match=r"mouse.*cat\.jpg"):
        named("mouse", images)


@pytest.mark.parametrize("empty", [[], (), {}])
def test_default_images_rejects_empty_input(empty: Any, tiny: Network) -> None:
    with pytest.raises(ValueError, match="(?i)picture|image"):
        gallery(tiny, empty)


def test_class_picker_finds_labels_read_with_line_ends(tiny_module: nn.Module) -> None:
    net = Network(tiny_module, size=16, labels=["cat\n", " dog", "tree frog\r\n", "owl"])
    assert net.labels == ("cat", "dog", "tree frog", "owl")
    assert net.target("cat\n") == net.target("Cat") == 0
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
    assert control("patch", Knob(1, 512), 10, high=high).max == ends
    assert control("patch", Knob(1.0, 512.0), 10.0, high=high).max == ends
    assert control("patch", Knob(1.0, 512.0, log=True), 10.0, high=high).max == pytest.approx(np.log10(ends))


def test_make_control_of_bool_is_a_checkbox() -> None:
    for value in (True, False):
        made = control("original_colors", Knob(kinds=(bool,)), value)
        assert isinstance(made, ipywidgets.Checkbox)
        assert (made.value, made.description) == (value, "original colors")


@pytest.mark.parametrize(
    ("knob", "value", "kind", "ends"),
    [
        (Knob(1, 500), 30, ipywidgets.IntSlider, (1, 500)),
        (Knob(0, FIELD), 3, ipywidgets.IntSlider, (0, FIELD)),
        (Knob(1, FIELD + 2), 3, ipywidgets.BoundedIntText, (1, FIELD + 2)),
        (Knob(16, 4096), 128, ipywidgets.BoundedIntText, (16, 4096)),
        (Knob(0), 0, ipywidgets.BoundedIntText, (0, 2**31 - 1)),
        (Knob(0, 5000.0), 1.5, ipywidgets.FloatSlider, (0, 5000)),
    ],
)
def test_make_control_of_wide_int_range_is_a_text_field(knob: Knob, value: float, kind: type, ends: tuple[int, int]) -> None:
    made = control("size", knob, value)
    assert type(made) is kind
    assert (made.value, made.min, made.max) == (value, *ends)


def test_make_control_of_choices_is_a_labeled_dropdown() -> None:
    made = control("begin", Knob(choices=("content", "random"), label="begin with"), "random")
    assert isinstance(made, ipywidgets.Dropdown)
    assert (made.options, made.value, made.description) == (("content", "random"), "random", "begin with")


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
    made = control("rate", knob, value)
    log = isinstance(made, ipywidgets.FloatLogSlider)
    grid = made.min + made.step * np.arange(round((made.max - made.min) / made.step) + 1)
    nearest = int(np.abs(grid - (np.log10(value) if log else value)).argmin())
    for move, same in ((0, True), (1, False), (-1, False)):
        new = grid[nearest + move]
        assert bool(rounded(made, 10.0**new if log else new, value)) == same
    assert rounded(ipywidgets.IntSlider(3), 3, 3)
    assert not rounded(ipywidgets.IntSlider(3), 4, 3)


class Owner(traitlets.HasTraits):
    noise = traitlets.Float(0.1234)
    name = traitlets.Any("b")

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.observe(lambda change: self.told.append(change["new"]))


def test_bind_ignores_rounding_by_slider() -> None:
    owner, slider = Owner(), control("noise", Knob(0, 1), 0.5)
    join(owner, "noise", slider)
    assert slider.value == 0.1234
    slider.value = 0.124  # the nearest step, which is what a page sends when it displays the slider
    assert (owner.noise, owner.told) == (0.1234, [])
    slider.value = 0.126
    assert (owner.noise, owner.told) == (0.126, [0.126])
    owner.noise = 0.7777
    assert (slider.value, owner.told) == (0.7777, [0.126, 0.7777])
    owner.noise = 3.0  # beyond the range of the slider
    assert (slider.value, owner.noise) == (1.0, 3.0)


def test_bind_links_trait_and_dropdown() -> None:
    owner, menu = Owner(), ipywidgets.Dropdown(options=["a", "b", "c"])
    join(owner, "name", menu)
    assert menu.value == "b"
    menu.value = "c"
    owner.name = "a"
    assert (menu.value, owner.told) == ("a", ["c", "a"])
