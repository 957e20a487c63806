"""TexturePanel, without a browser; tests shared by all image panels are in test_image_panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import traitlets
from widget_helpers import Gate, at, opening, photo, settled, shown, uploaded

from convis_widgets import Network, TexturePanel
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.synthesis.texture import texture

SAMPLES = {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate("ab")}
KNOBS = {"size": 16, "sample_size": 16, "scales": 1, "iterations": 3}


@pytest.fixture
def open_panel() -> Iterator[Callable[..., TexturePanel]]:
    with opening(TexturePanel) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> TexturePanel:
    return settled(open_panel(tiny, SAMPLES, **KNOBS))


def last_frame(net: Network, name: str = "a", **kwargs: Any) -> Frame:
    return Run(texture(net, SAMPLES[name], **(KNOBS | kwargs))).run()


def text_of(widget: Any) -> str:
    """The text of an HTML widget, without tags."""
    return re.sub("<[^>]*>", " ", widget.value)


def test_texture_panel_shows_sample(panel: TexturePanel) -> None:
    for name in ("a", "b"):
        panel.images.menu.value = name
        settled(panel)
        sample = shown(panel.sample)
        assert sample.shape == (192, 192, 3)
        assert np.array_equal(sample[::12, ::12], np.floor(SAMPLES[name] * 255 + 0.5).astype(np.uint8))
        assert re.search(rf"Gram.*\b{name}\b", text_of(panel.caption))
        assert np.array_equal(panel.frame.image, last_frame(panel.network, name).image)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"statistic": "covariance"},
        {"pooling": "max"},
        {"optimizer": "adam"},
        {"sample_size": 24},
        {"seed": 4},
        {"size": 50, "scales": 2},
    ],
)
def test_texture_panel_knobs_match_technique(kwargs: dict[str, Any], panel: TexturePanel) -> None:
    for name, value in kwargs.items():
        panel.controls[name].value = value
        assert getattr(panel, name) == value
    settled(panel)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, **kwargs).image)
    assert ("covariance" in panel.caption.value) == ("statistic" in kwargs)


def test_texture_panel_accepts_height_and_width(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, SAMPLES, **(KNOBS | {"size": (20, 33)})))
    assert panel.frame.image.shape == (20, 33, 3)
    assert panel.controls["size"].value == 33
    panel.size = (40, 24)
    settled(panel)
    assert not panel.status.value
    assert np.array_equal(panel.frame.image, last_frame(tiny, size=(40, 24)).image)
    assert panel.controls["size"].value == 40
    panel.controls["size"].value = 18
    settled(panel)
    assert panel.frame.image.shape == (18, 18, 3)
    with pytest.raises(traitlets.TraitError, match=r"size.*\b4\b.*\b8\b.*4,?096"):
        panel.size = (20, 4)


def test_texture_panel_rate_control_shows_optimizer_default(panel: TexturePanel) -> None:
    assert panel.controls["lr"].value == pytest.approx(1.0)
    panel.optimizer = "adam"
    assert panel.controls["lr"].value == pytest.approx(0.02)
    panel.lr = 0.05
    panel.optimizer = "lbfgs"
    assert panel.controls["lr"].value == pytest.approx(0.05), "a rate that was set is kept"
    panel.lr = None
    assert panel.controls["lr"].value == pytest.approx(1.0)
    settled(panel)


def test_texture_panel_tv_weight_is_live(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, SAMPLES, **(KNOBS | {"iterations": 8}))
    run = panel.run
    gate.let(2)
    at(panel, 2)
    panel.controls["tv_weight"].value = 0.0
    gate.let(6)
    settled(panel)
    assert panel.run is run
    options = [panel.curve.menu.options, panel.curve.menu.value]
    assert options == [("style", "tv"), "style"]
    panel.curve.menu.value = "tv"
    computed = np.isfinite(panel.curve.line.y).tolist()
    assert computed in ([True] * 2 + [False] * 6, [True] * 3 + [False] * 5), "no longer computed, no longer shown"


def test_texture_panel_uploads_sample(panel: TexturePanel) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    uploaded(panel.images.upload, "mine.png", photo(pixels))
    settled(panel)
    assert panel.images.menu.value == "mine.png"
    sample = panel.network.transform.uncropped_image(photo(pixels), 192)
    assert np.array_equal(shown(panel.sample), np.floor(sample * 255 + 0.5))
    expected = Run(texture(panel.network, (pixels / np.float32(255)), **KNOBS)).run()
    assert np.abs(panel.frame.image - expected.image).max() < 1e-3


def test_texture_panel_budget_includes_all_scales(panel: TexturePanel) -> None:
    knobs = {name: getattr(panel, name) for name in panel.knob_names} | {"size": (96, 64), "scales": 2, "iterations": 7}
    assert [(workload.size, workload.steps) for workload in panel.workload(knobs)] == [((48, 32), 7), ((96, 64), 7)]
