"""DeepDreamPanel, without a browser; what all panels share that begin with a picture is in test_picture_panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import traitlets
from seen import opening, photo, settled, uploaded

from convis_widgets import DeepDreamPanel, FilterGrid, Network, link
from convis_widgets.core import Frame, Run, Unit
from convis_widgets.techniques import deep_dream

PICTURES = {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate("ab")}
WORDS = {"size": 16, "octaves": 1, "iterations": 3}


@pytest.fixture
def open_panel() -> Iterator[Callable[..., DeepDreamPanel]]:
    with opening(DeepDreamPanel) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> DeepDreamPanel:
    return settled(open_panel(tiny, PICTURES, **WORDS))


def last(net: Network, name: str = "a", **words: Any) -> Frame:
    return Run(deep_dream(net, PICTURES[name], **(WORDS | words))).run()


def displayed(panel: DeepDreamPanel) -> set[str]:
    names = ("layers", "guides", "units", "classes")
    return {name for name in names if getattr(panel, name).layout.display != "none"}


def test_a_layer_a_unit_or_a_class_grows(panel: DeepDreamPanel) -> None:
    assert np.array_equal(panel.frame.image, last(panel.network).image)
    assert (panel.layer, displayed(panel)) == ("relu", {"layers", "guides"})
    panel.layer = "conv2"
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, of="conv2").image)
    assert "more of conv2" in panel.caption.value
    panel.unit = ("conv2", 5)
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, of=("conv2", 5)).image)
    assert "more of channel 5 of conv2" in panel.caption.value
    assert displayed(panel) == {"units"}
    panel.target = 3
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, target=3).image)
    assert f"more of {panel.network.labels[3]}" in panel.caption.value
    assert displayed(panel) == {"classes"}


def test_it_is_chosen_on_menus(panel: DeepDreamPanel) -> None:
    panel.layers.value = "side"
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, of="side").image)
    panel.kind.value = "a unit"
    panel.units.number.value = 2
    settled(panel)
    assert panel.unit == Unit("conv1", 2)
    assert np.array_equal(panel.frame.image, last(panel.network, of=("conv1", 2)).image)
    panel.kind.value = "a class"
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, target=0).image)
    panel.kind.value = "a layer"
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, of="side").image)


def test_another_picture_guides(panel: DeepDreamPanel) -> None:
    panel.guides.value = "b"
    settled(panel)
    assert panel.guide == "b"
    assert np.array_equal(panel.frame.image, last(panel.network, of="relu", guide=PICTURES["b"]).image)
    assert "more of relu, guided by b" in panel.caption.value
    panel.guide = "none"
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network).image)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({"layer": "conv1"}, "a layer"),
        ({"unit": ("conv1", 3)}, "a unit"),
        ({"target": 2}, "a class"),
        ({"guide": "b"}, "a layer"),
    ],
)
def test_one_can_begin_with_any(words: dict[str, Any], kind: str, tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, PICTURES, **WORDS, **words))
    asked = {"of": words["layer"]} if "layer" in words else {"of": words["unit"]} if "unit" in words else words
    asked = {"of": "relu", "guide": PICTURES["b"]} if "guide" in words else asked
    assert panel.kind.value == kind
    assert np.array_equal(panel.frame.image, last(tiny, **asked).image)


def test_a_unit_that_is_clicked_in_a_linked_widget_grows(tiny: Network, panel: DeepDreamPanel) -> None:
    grid = FilterGrid(tiny)
    link(grid, panel)
    grid.unit = ("conv1", 4)
    settled(panel)
    assert np.array_equal(panel.frame.image, last(tiny, of=("conv1", 4)).image)
    panel.units.number.value = 1
    assert grid.unit == Unit("conv1", 1)
    panel.unit = ("", 2)
    settled(panel)
    assert (panel.kind.value, panel.target) == ("a class", 2), "a unit of the scores is a class"
    grid.close()


def test_what_there_is_not_is_told_in_a_sentence(tiny: Network, panel: DeepDreamPanel) -> None:
    wrong = {
        "layer": ("conv7", "no layer 'conv7'"),
        "target": (9, "tiny has classes 0 to 3, not 9"),
        "guide": ("c", "no picture 'c'; there are a, b"),
        "unit": (("conv1", 99), "conv1"),
    }
    before = panel.frame
    for name, (value, message) in wrong.items():
        with pytest.raises((ValueError, traitlets.TraitError), match=message):
            setattr(panel, name, value)
        with pytest.raises((ValueError, traitlets.TraitError), match=message):
            DeepDreamPanel(tiny, PICTURES, **{name: value})
    assert panel.frame is before
    with pytest.raises(ValueError, match="give one of layer=, unit= and target="):
        DeepDreamPanel(tiny, PICTURES, layer="conv1", target=1)


def test_octaves_are_painted_from_coarse_to_fine_and_all_are_paid_for(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, PICTURES, size=48, octaves=3, iterations=2))
    assert panel.frame.total == 6
    assert np.array_equal(panel.frame.image, last(tiny, size=48, octaves=3, iterations=2).image)
    efforts = panel._effort({name: panel._value(name) for name in panel._knobs})
    assert [effort.size for effort in efforts] == [(24, 24), (34, 34), (48, 48)]
    assert {effort.steps for effort in efforts} == {2}


def test_an_uploaded_photo_is_taken_in_whole(panel: DeepDreamPanel) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    uploaded(panel.images.upload, "wide.png", photo(pixels))
    panel.size = 32
    settled(panel)
    assert panel.run.state == "done"
    assert panel.frame.image.shape == (16, 32, 3)


def test_a_gray_network_dreams_of_a_guide_in_gray(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, PICTURES, guide="b", **WORDS))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert panel.frame.image.shape == (16, 16, 1)
