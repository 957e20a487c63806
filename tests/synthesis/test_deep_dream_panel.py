"""DeepDreamPanel, without a browser; tests shared by all image panels are in test_image_panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import traitlets
from widget_helpers import opening, photo, settled, uploaded

from convis_widgets import DeepDreamPanel, FilterGrid, Network, link
from convis_widgets.core.network.unit import Unit
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.synthesis.deep_dream import deep_dream

IMAGES = {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate("ab")}
KNOBS = {"size": 16, "octaves": 1, "iterations": 3}


@pytest.fixture
def open_panel() -> Iterator[Callable[..., DeepDreamPanel]]:
    with opening(DeepDreamPanel) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> DeepDreamPanel:
    return settled(open_panel(tiny, IMAGES, **KNOBS))


def last_frame(net: Network, name: str = "a", **kwargs: Any) -> Frame:
    return Run(deep_dream(net, IMAGES[name], **(KNOBS | kwargs))).run()


def text_of(widget: Any) -> str:
    """The text of an HTML widget, without tags."""
    return re.sub("<[^>]*>", " ", widget.value)


def displayed(panel: DeepDreamPanel) -> set[str]:
    """Names of the controls that are shown."""
    names = ("layer", "guide", "unit", "target")
    return {name for name in names if panel.controls[name].layout.display != "none"}


def test_deep_dream_panel_amplifies_layer_unit_or_class(panel: DeepDreamPanel) -> None:
    assert np.array_equal(panel.frame.image, last_frame(panel.network).image)
    assert (panel.layer, displayed(panel)) == ("relu", {"layer", "guide"})
    panel.layer = "conv2"
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, objective="conv2").image)
    assert "conv2" in panel.caption.value
    panel.unit = ("conv2", 5)
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, objective=("conv2", 5)).image)
    assert re.search(r"\b5\b.*\bconv2\b|\bconv2\b.*\b5\b", text_of(panel.caption))
    assert displayed(panel) == {"unit"}
    panel.target = 3
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, target=3).image)
    assert panel.network.labels[3] in panel.caption.value
    assert displayed(panel) == {"target"}


def test_deep_dream_panel_menus_choose_layer_unit_or_class(panel: DeepDreamPanel) -> None:
    panel.controls["layer"].value = "side"
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, objective="side").image)
    panel.controls["target_type"].value = "unit"
    panel.controls["unit"].number.value = 2
    settled(panel)
    assert panel.unit == Unit("conv1", 2)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, objective=("conv1", 2)).image)
    panel.controls["target_type"].value = "class"
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, target=0).image)
    panel.controls["target_type"].value = "layer"
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, objective="side").image)


def test_deep_dream_panel_uses_guide_image(panel: DeepDreamPanel) -> None:
    panel.controls["guide"].value = "b"
    settled(panel)
    assert panel.guide == "b"
    assert np.array_equal(panel.frame.image, last_frame(panel.network, objective="relu", guide=IMAGES["b"]).image)
    assert re.search(r"\brelu\b.*\bb\b", text_of(panel.caption))
    panel.guide = "none"
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network).image)


@pytest.mark.parametrize(
    ("kwargs", "target_type"),
    [
        ({"layer": "conv1"}, "layer"),
        ({"unit": ("conv1", 3)}, "unit"),
        ({"target": 2}, "class"),
        ({"guide": "b"}, "layer"),
    ],
)
def test_deep_dream_panel_accepts_initial_layer_unit_or_class(
    kwargs: dict[str, Any], target_type: str, tiny: Network, open_panel: Any
) -> None:
    panel = settled(open_panel(tiny, IMAGES, **KNOBS, **kwargs))
    target = {"objective": kwargs.get("layer") or kwargs.get("unit")} if {"layer", "unit"} & {*kwargs} else kwargs
    target = {"objective": "relu", "guide": IMAGES["b"]} if "guide" in kwargs else target
    assert panel.target_type == panel.controls["target_type"].value == target_type
    assert np.array_equal(panel.frame.image, last_frame(tiny, **target).image)


def test_deep_dream_panel_follows_linked_unit(tiny: Network, panel: DeepDreamPanel) -> None:
    grid = FilterGrid(tiny)
    link(grid, panel)
    grid.unit = ("conv1", 4)
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(tiny, objective=("conv1", 4)).image)
    panel.controls["unit"].number.value = 1
    assert grid.unit == Unit("conv1", 1)
    panel.unit = ("", 2)
    settled(panel)
    assert (panel.target_type, panel.target) == ("class", 2), "a unit of the logits is a class"
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
            DeepDreamPanel(tiny, IMAGES, **{name: value})
    assert panel.frame is before
    with pytest.raises(ValueError, match="(?=.*layer)(?=.*unit)(?=.*target)"):
        DeepDreamPanel(tiny, IMAGES, layer="conv1", target=1)


def test_deep_dream_panel_budget_includes_all_octaves(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, IMAGES, size=48, octaves=3, iterations=2))
    assert panel.frame.total == 6
    assert np.array_equal(panel.frame.image, last_frame(tiny, size=48, octaves=3, iterations=2).image)
    workloads = panel.workload({name: getattr(panel, name) for name in panel.knob_names})
    assert [workload.size for workload in workloads] == [(24, 24), (34, 34), (48, 48)]
    assert {workload.steps for workload in workloads} == {2}


def test_deep_dream_panel_does_not_crop_uploaded_image(panel: DeepDreamPanel) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    uploaded(panel.images.upload, "wide.png", photo(pixels))
    assert "wide.png" in panel.controls["guide"].options
    panel.size = 32
    settled(panel)
    assert panel.run.state == "done"
    assert panel.frame.image.shape == (16, 32, 3)


def test_deep_dream_panel_guide_with_gray_network(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, IMAGES, guide="b", **KNOBS))
    assert (panel.run.state, panel.status.value) == ("done", "")
    assert panel.frame.image.shape == (16, 16, 1)
