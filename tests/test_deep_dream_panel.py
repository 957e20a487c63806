"""DeepDreamPanel, without a browser; tests shared by all image panels are in test_picture_panel."""

from __future__ import annotations

import re
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


def text_of(widget: Any) -> str:
    """The text of an HTML widget, without tags."""
    return re.sub("<[^>]*>", " ", widget.value)


def displayed(panel: DeepDreamPanel) -> set[str]:
    names = ("layers", "guides", "units", "classes")
    return {name for name in names if getattr(panel, name).layout.display != "none"}


def test_deep_dream_panel_amplifies_layer_unit_or_class(panel: DeepDreamPanel) -> None:
    assert np.array_equal(panel.frame.image, last(panel.network).image)
    assert (panel.layer, displayed(panel)) == ("relu", {"layers", "guides"})
    panel.layer = "conv2"
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, of="conv2").image)
    assert "conv2" in panel.caption.value
    panel.unit = ("conv2", 5)
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, of=("conv2", 5)).image)
    assert re.search(r"\b5\b.*\bconv2\b|\bconv2\b.*\b5\b", text_of(panel.caption))
    assert displayed(panel) == {"units"}
    panel.target = 3
    settled(panel)
    assert np.array_equal(panel.frame.image, last(panel.network, target=3).image)
    assert panel.network.labels[3] in panel.caption.value
    assert displayed(panel) == {"classes"}


def test_deep_dream_panel_menus_choose_layer_unit_or_class(panel: DeepDreamPanel) -> None:
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


def test_deep_dream_panel_uses_guide_image(panel: DeepDreamPanel) -> None:
    panel.guides.value = "b"
    settled(panel)
    assert panel.guide == "b"
    assert np.array_equal(panel.frame.image, last(panel.network, of="relu", guide=PICTURES["b"]).image)
    assert re.search(r"\brelu\b.*\bb\b", text_of(panel.caption))
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
def test_deep_dream_panel_accepts_initial_layer_unit_or_class(
    words: dict[str, Any], kind: str, tiny: Network, open_panel: Any
) -> None:
    panel = settled(open_panel(tiny, PICTURES, **WORDS, **words))
    asked = {"of": words["layer"]} if "layer" in words else {"of": words["unit"]} if "unit" in words else words
    asked = {"of": "relu", "guide": PICTURES["b"]} if "guide" in words else asked
    assert panel.kind.value == kind
    assert np.array_equal(panel.frame.image, last(tiny, **asked).image)


def test_deep_dream_panel_follows_linked_unit(tiny: Network, panel: DeepDreamPanel) -> None:
    grid = FilterGrid(tiny)
    link(grid, panel)
    grid.unit = ("conv1", 4)
    settled(panel)
    assert np.array_equal(panel.frame.image, last(tiny, of=("conv1", 4)).image)
    panel.units.number.value = 1
    assert grid.unit == Unit("conv1", 1)
    panel.unit = ("", 2)
    settled(panel)
    assert (panel.kind.value, panel.target) == ("a class", 2), "a unit of the logits is a class"
    grid.close()


def test_deep_dream_panel_rejects_unknown_values(tiny: Network, panel: DeepDreamPanel) -> None:
    wrong = {
        "layer": ("conv7", "conv7"),
        "target": (9, r"(?=.*tiny)(?=.*\b3\b)(?=.*\b9\b)"),
        "guide": ("c", r"\bc\b.*\ba, b\b"),
        "unit": (("conv1", 99), "conv1"),
    }
    before = panel.frame
    for name, (value, message) in wrong.items():
        with pytest.raises((ValueError, traitlets.TraitError), match=message):
            setattr(panel, name, value)
        with pytest.raises((ValueError, traitlets.TraitError), match=message):
            DeepDreamPanel(tiny, PICTURES, **{name: value})
    assert panel.frame is before
    with pytest.raises(ValueError, match="(?=.*layer)(?=.*unit)(?=.*target)"):
        DeepDreamPanel(tiny, PICTURES, layer="conv1", target=1)


def test_deep_dream_panel_budget_includes_all_octaves(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, PICTURES, size=48, octaves=3, iterations=2))
    assert panel.frame.total == 6
    assert np.array_equal(panel.frame.image, last(tiny, size=48, octaves=3, iterations=2).image)
    efforts = panel._effort({name: panel._value(name) for name in panel._knobs})
    assert [effort.size for effort in efforts] == [(24, 24), (34, 34), (48, 48)]
    assert {effort.steps for effort in efforts} == {2}


def test_deep_dream_panel_does_not_crop_uploaded_image(panel: DeepDreamPanel) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    uploaded(panel.images.upload, "wide.png", photo(pixels))
    panel.size = 32
    settled(panel)
    assert panel.run.state == "done"
    assert panel.frame.image.shape == (16, 32, 3)


def test_deep_dream_panel_guide_with_gray_network(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, PICTURES, guide="b", **WORDS))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert panel.frame.image.shape == (16, 16, 1)
