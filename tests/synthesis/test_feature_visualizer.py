"""FeatureVisualizer, and what all synthesis panels share, without a browser."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from widget_helpers import PATIENCE, Gate, at, opening, reached, settled, shown

from convis_widgets import FeatureVisualizer, FilterGrid, MaxPatchGallery, Network, Scan, link
from convis_widgets.core.knob import get_knobs
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis.presets import preset_settings
from convis_widgets.techniques.synthesis.gradient_ascent import gradient_ascent
from convis_widgets.widgets.drawing.bars import prediction_bars
from convis_widgets.widgets.drawing.encode import enlarge, to_rgb_uint8
from convis_widgets.widgets.synthesis import synthesis_panel
from convis_widgets.widgets.synthesis.synthesis_panel import IMAGE_SIDE


@pytest.fixture
def open_panel() -> Iterator[Callable[..., FeatureVisualizer]]:
    with opening(FeatureVisualizer) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> FeatureVisualizer:
    return settled(open_panel(tiny, target=2, iterations=12))


def step_shown(panel: FeatureVisualizer) -> int:
    """The number of the step that is displayed."""
    return int(re.search(r"\d+", panel.shown_step.value)[0])


# -- knobs -------------------------------------------------------------------------------------------------------------


def test_feature_visualizer_has_trait_and_control_for_every_knob(panel: FeatureVisualizer) -> None:
    knobs = get_knobs(gradient_ascent)
    assert {*knobs} <= {*panel.controls} & {*panel.trait_names()}
    expected = preset_settings("modern", iterations=12) | {"preset": "modern", "seed": 0}
    for name in knobs:
        assert panel.controls[name].value == pytest.approx(expected[name])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, r"lr.*-1\b"),
        ({"lr": "fast"}, "lr.*fast"),
        ({"preset": "best"}, "preset.*best.*modern"),
        ({"iterations": 0}, r"iterations.*\b0\b"),
        ({"optimizer": "sgd"}, "optimizer.*sgd"),
    ],
)
def test_feature_visualizer_rejects_invalid_knob_values(
    kwargs: dict[str, Any], message: str, tiny: Network, panel: Any
) -> None:
    with pytest.raises(traitlets.TraitError, match=message):
        FeatureVisualizer(tiny, **kwargs)
    (name, value), before = next(iter(kwargs.items())), panel.frame
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(panel, name, value)
    assert panel.frame is before


def test_feature_visualizer_live_knob_affects_current_run(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, target=1, iterations=8)
    run = panel.run
    gate.let(2)
    at(panel, 2)
    panel.controls["lr"].value = 0.2
    assert panel.lr == 0.2
    panel.rotate = 20.0
    assert panel.controls["rotate"].value == 20
    gate.let(6)
    settled(panel)
    assert panel.run is run
    assert [kwargs["lr"] for kwargs in gate.words[:2]] == [0.05, 0.05]
    assert gate.words[-1]["lr"] == 0.2
    assert gate.words[-1]["rotate"] == 20
    assert run.state == "done"


def test_feature_visualizer_restarts_on_other_knob_change(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, target=1, iterations=8)
    first = panel.run
    gate.let(2)
    at(panel, 2)
    panel.seed = 3
    assert panel.run is not first
    gate.let(100)
    assert settled(panel).frame.step == 8
    assert first.state == "stopped"
    expected = Run(gradient_ascent(tiny, target=1, iterations=8, seed=3)).run()
    assert np.array_equal(panel.frame.image, expected.image)


def test_feature_visualizer_preset_sets_all_its_knobs(panel: FeatureVisualizer) -> None:
    panel.lr = 0.3
    panel.preset = "cs231n"
    settled(panel)
    assert panel.lr is None
    assert panel.controls["lr"].value == pytest.approx(0.0145)
    assert panel.controls["blur_every"].value == 10
    assert (panel.frame.total, panel.controls["iterations"].value) == (100, 100)
    expected = Run(gradient_ascent(panel.network, target=2, preset="cs231n")).run()
    assert np.array_equal(panel.frame.image, expected.image)


# -- the image ---------------------------------------------------------------------------------------------------------


def test_feature_visualizer_image_matches_gradient_ascent(panel: FeatureVisualizer) -> None:
    expected = Run(gradient_ascent(panel.network, target=2, iterations=12)).run()
    assert panel.run.state == "done"
    assert np.array_equal(panel.frame.image, expected.image)
    assert np.array_equal(shown(panel.view), enlarge(to_rgb_uint8(expected.image), IMAGE_SIDE))
    assert panel.curve.line.x.tolist() == list(range(1, 13))
    assert panel.curve.line.y[-1] == pytest.approx(expected.scalars["objective"])


def test_feature_visualizer_bars_show_predictions_for_displayed_image(panel: FeatureVisualizer) -> None:
    predictions = panel.network.predict(to_rgb_uint8(panel.frame.image), 5)
    assert panel.bars.value == prediction_bars(predictions, panel.network.output)
    best, p = panel.network.predict(to_rgb_uint8(panel.frame.image), 1)[0]
    assert best in panel.view.alt
    assert f"{p:.1%}" in panel.view.alt


def test_prediction_bars_escape_class_names() -> None:
    assert "<img" not in prediction_bars([("<img src=x>", 0.5)], Network.demo().output)


def test_feature_visualizer_restarts_on_class_or_unit_change(panel: FeatureVisualizer) -> None:
    panel.target = 3
    settled(panel)
    assert np.array_equal(panel.frame.image, Run(gradient_ascent(panel.network, target=3, iterations=12)).run().image)
    panel.unit = ("conv2", 5)
    settled(panel)
    assert np.array_equal(
        panel.frame.image, Run(gradient_ascent(panel.network, objective=("conv2", 5), iterations=12)).run().image
    )
    assert panel.target_type == "unit"
    assert re.search(r"\b5\b.*\bconv2\b|\bconv2\b.*\b5\b", panel.view.alt)
    panel.controls["target"].value = 1
    settled(panel)
    assert (panel.target, panel.target_type) == (1, "class")
    panel.controls["target_type"].value = "unit"
    settled(panel)
    assert re.search(r"\b5\b.*\bconv2\b|\bconv2\b.*\b5\b", panel.view.alt)


def test_feature_visualizer_follows_linked_unit(tiny: Network, panel: FeatureVisualizer) -> None:
    grid = FilterGrid(tiny)
    link(grid, panel)
    grid.unit = ("conv1", 4)
    settled(panel)
    assert re.search(r"\b4\b.*\bconv1\b|\bconv1\b.*\b4\b", panel.view.alt)
    grid.close()


def test_feature_visualizer_with_gray_network(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, target=1, iterations=6))
    assert panel.run.state == "done"
    assert not panel.status.value
    image = shown(panel.view)
    assert (image[..., 0] == image[..., 1]).all()


def test_feature_visualizer_rejects_target_with_unit(tiny: Network) -> None:
    with pytest.raises(ValueError, match="(?=.*target)(?=.*unit)"):
        FeatureVisualizer(tiny, target=1, unit=("conv1", 0))
    with pytest.raises((ValueError, traitlets.TraitError), match=r"(?=.*tiny)(?=.*\b3\b)(?=.*\b9\b)"):
        FeatureVisualizer(tiny, target=9)


def test_feature_visualizer_reports_error_and_recovers(panel: FeatureVisualizer) -> None:
    panel.decay = 0.1
    panel.bar.on_start()
    settled(panel)
    assert "pixels" in panel.status.value
    panel.decay = None
    panel.bar.on_start()
    settled(panel)
    assert not panel.status.value
    assert panel.run.state == "done"


# -- start, pause, step, stop ------------------------------------------------------------------------------------------


def test_feature_visualizer_pause_step_and_stop(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, target=1, iterations=50)
    gate.let(3)
    at(panel, 3)
    panel.bar.on_pause()
    gate.let(1)
    reached(panel.run, lambda run: run.state == "paused")
    step = panel.run.last.step
    gate.let(1)
    panel.bar.on_step()
    reached(panel.run, lambda run: run.last.step == step + 1 and run.state == "paused")
    panel.bar.on_stop()
    settled(panel)
    assert panel.run.state == "stopped"
    assert step_shown(panel) == step + 1
    assert np.array_equal(shown(panel.view), enlarge(to_rgb_uint8(panel.frame.image), IMAGE_SIDE))


def test_feature_visualizer_stop_ends_within_one_step(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, target=1, iterations=50)
    gate.let(2)
    at(panel, 2)
    panel.bar.on_stop()
    gate.let(50)
    settled(panel)
    assert panel.run.last.step <= 3


def test_feature_visualizer_many_restarts_leave_nothing_behind(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, target=1, iterations=5))
    widgets = {*_instances}
    hooks = [len(module._forward_hooks) for module in tiny.module.modules()]
    for _ in range(200):
        panel.bar.on_start()
        panel.bar.on_stop()
    settled(panel)
    assert {*_instances} == widgets
    assert [len(module._forward_hooks) for module in tiny.module.modules()] == hooks
    waiting = [thread for thread in threading.enumerate() if thread.name == "convis-run"]
    for thread in waiting:
        thread.join(PATIENCE)
    assert not [thread for thread in threading.enumerate() if thread.name == "convis-run"]


def test_feature_visualizer_two_panels_run_concurrently(tiny: Network, open_panel: Any) -> None:
    two = [open_panel(tiny, target=c, iterations=20) for c in (1, 2)]
    for panel, c in zip(two, (1, 2), strict=True):
        expected = Run(gradient_ascent(tiny, target=c, iterations=20)).run()
        assert np.array_equal(settled(panel).frame.image, expected.image)


# -- history -----------------------------------------------------------------------------------------------------------


def test_feature_visualizer_scrub_shows_history(panel: FeatureVisualizer) -> None:
    assert (panel.scrub.max, panel.scrub.value, step_shown(panel)) == (11, 11, 12)
    frames = list(gradient_ascent(panel.network, target=2, iterations=12))
    for index in (0, 4):
        panel.scrub.value = index
        assert step_shown(panel) == index + 1
        assert np.array_equal(shown(panel.view), enlarge(to_rgb_uint8(frames[index].image), IMAGE_SIDE))
        assert panel.bars.value == prediction_bars(
            panel.network.predict(to_rgb_uint8(frames[index].image), 5), panel.network.output
        )
    panel.scrub.value = 11
    assert np.array_equal(shown(panel.view), enlarge(to_rgb_uint8(frames[-1].image), IMAGE_SIDE))


def test_feature_visualizer_scrub_position_is_kept_during_run(
    tiny: Network, gate: Gate, open_panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis_panel, "MIN_UPDATE_PERIOD", 0)
    monkeypatch.setattr(synthesis_panel, "UPDATE_COST_FACTOR", 0)
    panel = open_panel(tiny, target=1, iterations=9)
    gate.let(4)
    at(panel, 4)
    panel.scrub.value = 1
    looked_at = shown(panel.view)
    gate.let(5)
    settled(panel)
    assert (panel.scrub.value, panel.scrub.max, step_shown(panel)) == (1, 8, 2)
    assert np.array_equal(shown(panel.view), looked_at)


def test_feature_visualizer_resumes_from_history_image(panel: FeatureVisualizer) -> None:
    panel.scrub.value = 3
    past = panel.history.images[3]
    panel.continue_from()
    settled(panel)
    expected = Run(gradient_ascent(panel.network, target=2, iterations=12, init_image=past)).run()
    assert np.array_equal(panel.frame.image, expected.image)
    panel.target = 1
    settled(panel)
    fresh = Run(gradient_ascent(panel.network, target=1, iterations=12)).run()
    assert np.array_equal(panel.frame.image, fresh.image), "another class restarts from scratch"


# -- files -------------------------------------------------------------------------------------------------------------


def test_feature_visualizer_saves_images_and_films(
    panel: FeatureVisualizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(panel.save(tmp_path / "one.png")) as image:
        assert image.size[0] >= IMAGE_SIDE
    with Image.open(panel.save(tmp_path / "film.gif")) as film:
        assert film.n_frames == 12
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        panel.png_button.click()
        panel.gif_button.click()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"gradient_ascent.png", "gradient_ascent 1.png", "gradient_ascent.gif", "gradient_ascent 1.gif"} <= names
    assert "gradient_ascent 1.gif" in panel.saved.value
    assert not [name for name in names if name.endswith(".part")]
    with pytest.raises(ValueError, match=r"\.png.*\.gif"):
        panel.save(tmp_path / "image.jpg")


def test_feature_visualizer_snapshot_before_first_image(tiny: Network, gate: Gate, open_panel: Any) -> None:
    panel = open_panel(tiny, target=1, iterations=9)
    assert panel.snapshot().ndim == 3
    panel.continue_from()
    panel.gif_button.click()
    assert panel.status.value


# -- where the image starts --------------------------------------------------------------------------------------------


def test_feature_visualizer_starts_from_noise_or_mean_image(tiny: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny, target=1, iterations=1, preset="cs231n", lr=1e-4))
    assert panel.controls["init"].value == "noise"
    assert panel.frame.image.std() > 0.1
    panel.controls["init"].value = "mean"
    settled(panel)
    assert np.abs(panel.frame.image - tiny.transform.mean_pixel).max() < 0.01
    assert "from the mean image" in panel.caption.value
    panel.preset = "simonyan"
    assert settled(panel).init is None
    assert panel.controls["init"].value == "mean", "as Simonyan et al."


@pytest.mark.parametrize("linked", [True, False])
def test_feature_visualizer_starts_from_strongest_patch(
    linked: bool, tiny: Network, own_cache: None, open_panel: Any
) -> None:
    images = np.random.default_rng(1).random((6, 16, 16, 3)).astype(np.float32)
    scan = Scan(tiny, images, layers="conv")
    Run(scan.frames()).run()
    kwargs = {"unit": ("relu", 2), "init": "patch", "iterations": 1, "preset": "yosinski 3", "lr": 1e-4}
    panel = settled(open_panel(tiny, images=None if linked else scan, **kwargs))
    if linked:
        assert "needs a scan of images" in panel.status.value
        link(panel, open_panel(tiny, scan, kind=MaxPatchGallery, unit=("conv1", 0)))
        panel.recompute()
        settled(panel)
    with torch.no_grad():
        maps = tiny.module.conv1(tiny.transform.normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))[:, 2]
    index, row, column = np.unravel_index(int(maps.argmax()), maps.shape)
    expected = np.full((16, 16, 3), tiny.transform.mean_pixel)
    top, left = max(0, 2 * row - 1), max(0, 2 * column - 1)  # 3x3 with stride 2 and padding 1
    bottom, right = 2 * row + 2, 2 * column + 2
    expected[top:bottom, left:right] = images[index, top:bottom, left:right]
    assert np.abs(panel.frame.image - expected).max() < 0.01
    assert "from its strongest patch" in panel.caption.value
    panel.target = 1
    settled(panel)
    assert "a class has no strongest patch" in panel.status.value
    panel.init = "noise"
    assert settled(panel).status.value == ""


def test_feature_visualizer_says_when_a_unit_did_not_respond(tiny_module: Any, open_panel: Any) -> None:
    with torch.no_grad():
        tiny_module.conv1.bias[2] = -1000
    panel = settled(open_panel(Network(tiny_module, size=16), unit=("relu", 2), iterations=3))
    assert "the unit did not respond" in panel.caption.value
    assert "the unit did not respond" in panel.caption_text()
    assert panel.bar.text.value == "did not respond, 3 of 3"
    panel.target = 1
    assert "respond" not in settled(panel).caption.value
    assert panel.bar.text.value == "done, 3 of 3"


def test_feature_visualizer_says_which_images_other_networks_may_not_recognize(panel: FeatureVisualizer) -> None:
    assert "other networks" not in panel.caption.value, "modern"
    panel.preset = "simonyan"
    assert "other networks may not recognize" in settled(panel).caption.value
    panel.unit = ("conv1", 1)
    assert "other networks" not in settled(panel).caption.value
