"""SaliencyViewer and its panels, without a browser."""

from __future__ import annotations

import copy
import re
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from seen import PATIENCE, settled, shown
from torch import nn

from convis_widgets import (
    ActivationExplorer,
    FilterGrid,
    Network,
    OcclusionViewer,
    RandomizationViewer,
    SaliencyViewer,
    Unit,
    demo,
    link,
)
from convis_widgets.core import COLORMAPS, Run
from convis_widgets.techniques import grad_cam, guided_backprop, occlusion, saliency
from convis_widgets.widgets.methods import METHODS


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return demo.images(1, seed=4, label="face")[0].image


def test_the_raw_range_is_shown() -> None:
    viewer = settled(SaliencyViewer(target="face"))
    panel, heat = viewer.panels[0], viewer.frame.heat
    assert panel.scale.low.value == f"{heat.min():.3g}"
    assert panel.scale.high.value == f"{panel.limits[1]:.3g} or more"
    assert panel.range.value == f"values from {heat.min():.3g} to {heat.max():.3g}"
    beyond = heat > panel.limits[1]
    assert 0.004 < beyond.mean() < 0.006, "a few pixels do not leave the rest in the dark"
    viewer.method = "grad-cam"
    settled(viewer)
    assert panel.scale.high.value == f"{viewer.frame.heat.max():.3g}"


def test_occlusion_streams_stops_and_keeps_the_map() -> None:
    viewer = SaliencyViewer(method="occlusion", patch=4, stride=1)
    run = viewer.run
    begun = threading.Event()
    run.subscribe(lambda r: begun.set() if r.last is not None else None)
    assert run.last is not None or begun.wait(PATIENCE)
    viewer.bar.on_stop()
    assert run.join(PATIENCE)
    assert run.state in ("stopped", "done")
    assert viewer.frame is not None
    viewer.bar.on_start()
    assert viewer.run is not run
    assert viewer.run.join(PATIENCE)
    assert viewer.run.state == "done"
    assert "done" in viewer.bar.text.value


def test_stepping() -> None:
    viewer = settled(SaliencyViewer(method="occlusion", patch=30, stride=2))
    viewer.bar.on_step()
    paused = threading.Event()
    viewer.run.subscribe(lambda run: paused.set() if run.state == "paused" else None)
    if viewer.run.state != "paused":
        assert paused.wait(PATIENCE)
    assert viewer.run.last.step == 0
    viewer.close()


def test_a_turned_knob_begins_anew() -> None:
    viewer = settled(SaliencyViewer(method="occlusion", patch=20, stride=10))
    first = viewer.run
    viewer.knobs["patch"].value = 32
    settled(viewer)
    assert viewer.run is not first
    assert len(viewer.frame.arrays["rows"]) == 5


def test_an_unknown_class_is_refused_with_near_names() -> None:
    with pytest.raises(ValueError, match="no class 'butterfy'.*nearest: butterfly"):
        SaliencyViewer(target="butterfy")


@pytest.mark.parametrize(
    ("knob", "sentence"), [({"fill": "pink"}, "'pink' should be 'mean', 'gray'"), ({"patch": -3}, "-3 is outside 1 to")]
)
def test_a_knob_that_cannot_be_is_refused_in_words(knob: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SaliencyViewer(**knob)
    viewer = settled(SaliencyViewer())
    with pytest.raises(ValueError, match=sentence):
        viewer.set_trait(*next(iter(knob.items())))


def test_where_a_probability_hardly_changes_the_map_is_pale() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(module[3].weight)
    viewer = settled(SaliencyViewer(Network(module, size=16), np.full((16, 16, 3), 0.2, np.float32), method="occlusion"))
    assert viewer.panels[0].limits == (-0.001, 0.001)
    assert shown(viewer.panels[0].map_view).min() > 235


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_menu_shows_its_own_map(name: str, face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=name, target="face"))
    assert not viewer.refusals
    frames = METHODS[name].technique(
        viewer.network, face, target="face", **{k: getattr(viewer, k) for k in METHODS[name].knobs}
    )
    assert np.array_equal(viewer.frame.heat, Run(frames).run().heat)
    assert shown(viewer.panels[0].map_view).std() > 3
    assert "face" in viewer.panels[0].text
    viewer.close()


def test_methods_stand_side_by_side_on_one_picture(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"], target="face"))
    assert [panel.method for panel in viewer.panels] == ["gradient", "grad-cam"]
    for name, technique in (("gradient", saliency), ("grad-cam", grad_cam)):
        expected = Run(technique(viewer.network, face, target="face")).run().heat
        assert np.array_equal(viewer.frames[name].heat, expected)
    pictures = [panel.map_view.array for panel in viewer.panels]
    assert not np.array_equal(*pictures)
    height, width, _ = viewer.snapshot().shape
    assert height > 2 * 256, "what stands below a map is below it"
    assert 3 * 256 < width < 4 * 256


def test_a_panel_is_added_replaced_and_taken_away(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face))
    first = viewer.frame
    viewer.add.click()
    settled(viewer)
    assert viewer.method == ("gradient", "guided backprop")
    assert viewer.frames["gradient"] is first, "what is there already is not computed again"
    viewer.panels[1].menu.value = "grad-cam"
    settled(viewer)
    assert viewer.method == ("gradient", "grad-cam")
    assert np.array_equal(viewer.panels[1].frame.heat, viewer.frames["grad-cam"].heat)
    viewer.panels[0].remove.click()
    assert viewer.method == "grad-cam"
    assert viewer.panels[0].frame is viewer.frames["grad-cam"]
    viewer.method = ["occlusion", "gradient"]
    settled(viewer)
    assert [panel.menu.value for panel in viewer.panels] == ["occlusion", "gradient"]
    viewer.panels[0].menu.value = "gradient"
    assert viewer.method == ("gradient", "occlusion"), "the two change places"
    viewer.method = [saliency, "grad_cam"]
    assert viewer.method == ("gradient", "grad-cam")
    for wrong, sentence in (
        ("gradcam", "no method 'gradcam'; nearest: grad-cam"),
        ([], "should be different ones of gradient, guided"),
        (["gradient", "saliency"], "should be different ones of gradient, guided"),
    ):
        with pytest.raises(Exception, match=sentence):
            viewer.method = wrong
    viewer.method = tuple(METHODS)
    assert viewer.add.disabled


def test_methods_take_turns(face: np.ndarray) -> None:
    """A long one does not keep the others waiting."""
    viewer = settled(SaliencyViewer(image=face, patch=8, stride=1))
    order = []

    def follow(run: Run) -> None:
        order.append({name: frame.step for name, frame in viewer.frames.items()})

    viewer.method = ("occlusion", "smooth grad")
    viewer.run.subscribe(follow)
    settled(viewer)
    last = viewer.frames["occlusion"].step
    assert viewer.frames["occlusion"].done
    assert any(seen.get("smooth grad", 0) == 32 and seen.get("occlusion", 0) < last for seen in order)


def test_a_method_that_is_not_defined_says_so_and_the_others_go_on(face: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    viewer = settled(SaliencyViewer(Network(module, size=64), face, method=["guided backprop", "gradient"]))
    assert viewer.run.state == "done"
    assert "1 (GELU)" in viewer.panels[0].caption.value
    assert viewer.panels[0].map_view.alt
    assert viewer.panels[1].frame is not None
    assert not viewer.status.value
    viewer.method = "gradient"
    assert "GELU" not in viewer.panels[0].caption.value


def test_without_opencv_only_the_segmentation_is_missing(face: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    viewer = settled(SaliencyViewer(image=face, method=["segmentation", "gradient"]))
    assert "needs OpenCV" in viewer.panels[0].caption.value
    assert viewer.frames["gradient"].done


def test_what_is_selected_in_a_linked_widget_is_explained(face: np.ndarray) -> None:
    grid, viewer = FilterGrid(), SaliencyViewer(image=face, method="guided backprop", target="face")
    link(grid, viewer)
    grid.unit = ("conv3", 7)
    assert viewer.explain == "a unit"
    settled(viewer)
    expected = Run(guided_backprop(viewer.network, face, of=("conv3", 7))).run().heat
    assert np.array_equal(viewer.frame.heat, expected)
    assert "conv3, channel 7" in viewer.panels[0].text
    grid.unit = ("", 3)
    settled(viewer)
    assert (viewer.explain, viewer.target) == ("a class", 3)
    assert np.array_equal(viewer.frame.heat, Run(guided_backprop(viewer.network, face, target=3)).run().heat)
    grid.unit = ("conv1", 3)
    settled(viewer)
    assert np.array_equal(viewer.frame.heat, Run(guided_backprop(viewer.network, face, of=("conv1", 3))).run().heat)
    viewer.units.number.value = 4
    settled(viewer)
    assert grid.unit == Unit("conv1", 4)
    viewer.units.menu.value = "conv2"
    assert viewer.unit == Unit("conv2", 0)
    viewer.explain = "a class"
    settled(viewer)
    assert np.array_equal(viewer.frame.heat, Run(guided_backprop(viewer.network, face, target=3)).run().heat)


def test_a_given_unit_is_explained_at_once_by_every_method(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=list(METHODS), unit=("conv4", 9), patch=16, stride=8))
    assert not viewer.refusals
    assert not viewer.status.value
    assert all("conv4, channel 9" in panel.text for panel in viewer.panels)
    expected = Run(occlusion(viewer.network, face, of=("conv4", 9), patch=16, stride=8)).run().heat
    assert np.array_equal(viewer.frames["occlusion"].heat, expected)


def test_hovering_reads_the_raw_value_of_every_map(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"], target="face"))
    viewer.panels[1].map_view.on_mouse({"type": "mousemove", "relativeX": 4 * 37 + 2, "relativeY": 4 * 21 + 3})
    for name in ("gradient", "grad-cam"):
        assert f"{name} {viewer.frames[name].heat[21, 37]:.3g}" in viewer.hover.value
    assert "row 21, column 37" in viewer.hover.value
    viewer.panels[1].map_view.on_mouse({"type": "mouseleave"})
    assert not viewer.hover.value


def test_the_mask_keeps_the_highest_values_and_the_cut_out_their_pixels(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, view="mask", share=0.2, target="face"))
    heat, panel = viewer.frame.heat, viewer.panels[0]
    order = np.argsort(heat.ravel())[::-1][: round(0.2 * heat.size)]
    expected = np.zeros(heat.size, bool)
    expected[order] = True
    mask = panel.over_view.array[2::4, 2::4, 0] == 255
    assert (mask.ravel() != expected).mean() < 0.001
    viewer.view = "cut-out"
    pixels = panel.over_view.array[2::4, 2::4]
    assert np.array_equal(pixels[mask], (face[mask] * 255 + 0.5).astype(np.uint8))
    assert len(np.unique(pixels[~mask], axis=0)) <= 2, "a checkerboard"
    viewer.share_slider.value = 0.5
    assert 0.49 < (panel._mask(viewer.share)).mean() < 0.51


def test_the_view_of_a_segmentation_is_its_own_mask(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="segmentation", view="mask"))
    assert np.array_equal(viewer.panels[0].over_view.array[2::4, 2::4, 0] == 255, viewer.frame.arrays["mask"])


def test_a_map_that_is_the_same_everywhere_has_an_empty_mask() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(module[0].weight)
    viewer = settled(SaliencyViewer(Network(module, size=16), np.full((16, 16, 3), 0.2, np.float32), view="mask"))
    assert viewer.panels[0].over_view.array.max() == 0


def test_the_doubt_button_randomizes_the_network(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="grad-cam", target="face"))
    weights = viewer.network.module.conv1.weight.clone()
    viewer.doubt.click()
    check = settled(viewer._check)
    assert check.method == "grad-cam"
    assert len(check.strip.children) == 1 + len(check.frame.arrays["maps"]) > 5
    assert np.array_equal(check.frame.arrays["maps"][0], viewer.frame.heat)
    assert not np.array_equal(check.frame.arrays["maps"][-1], viewer.frame.heat)
    assert torch.equal(weights, viewer.network.module.conv1.weight)
    viewer.doubt.click()
    assert check.closed
    viewer.close()
    assert viewer._check.closed


def test_integrated_gradients_tell_how_complete_they_are(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="integrated gradients", target="face", steps=8, baseline="white"))
    panel, scalars = viewer.panels[0], viewer.frame.scalars
    assert "from the white picture" in panel.caption.value
    assert f"rises by {scalars['rise']:.3g}" in panel.under.value
    assert f"off by {scalars['completeness error']:.2g}" in panel.under.value


def test_only_the_turned_method_is_computed_again(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["integrated gradients", "smooth grad"]))
    before = dict(viewer.frames)
    viewer.knobs["samples"].value = 5
    settled(viewer)
    assert viewer.frames["smooth grad"].total == 5
    assert viewer.frames["integrated gradients"] is before["integrated gradients"]
    viewer.knobs["baseline"].value = "white"
    settled(viewer)
    assert viewer.frames["integrated gradients"].arrays["baseline"].min() == 1


def test_a_class_can_be_named_later_too() -> None:
    viewer = settled(SaliencyViewer())
    viewer.target = "fish"
    assert viewer.target == viewer.classes.value == viewer.network.target("fish")
    with pytest.raises(ValueError, match="no class 'fsh'.*nearest: fish"):
        viewer.target = "fsh"


def test_the_class_that_is_asked_about_stands_beside_the_most_probable_one(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, target="car"))
    for name in ("face", "car"):
        assert f"{name} {viewer.probabilities[viewer.network.target(name)]:.1%}" in viewer.input_caption.value


def test_a_unit_that_is_off_says_so_and_has_the_color_of_zero(face: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        module[0].bias[1] = -99
    viewer = settled(SaliencyViewer(Network(module, size=64), face, unit=("1", 1)))
    assert "1, channel 1 is off in this picture" in viewer.panels[0].caption.value
    assert (shown(viewer.panels[0].map_view) == COLORMAPS["viridis"][0]).all()


def test_a_cut_out_by_occlusion_keeps_only_what_matters(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="occlusion", view="mask", patch=8, stride=8, share=1.0))
    kept = shown(viewer.panels[0].over_view)[::4, ::4, 0] > 0
    assert np.array_equal(kept, viewer.frame.heat > METHODS["occlusion"].least)
    assert 0 < kept.mean() < 1
    assert f"{kept.mean():.0%} of the picture" in viewer.panels[0].under.value


def test_the_answer_of_the_randomization_goes_with_its_question(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"]))
    for change in ({"target": 2}, {"method": "grad-cam"}, {"explain": "a unit"}):
        viewer.doubt.click()
        check = viewer._below.children[0]
        viewer.set_trait(*next(iter(change.items())))
        assert check.closed
        assert not viewer._below.children


def test_a_page_without_a_kernel_shows_every_method(face: np.ndarray) -> None:
    viewer = SaliencyViewer(image=face, method=["occlusion", "smooth grad", "grad-cam"], patch=4, stride=1)
    viewer._await_picture()
    panels, _ = viewer._page()
    assert [title for title, _ in panels] == ["picture", "occlusion", "smooth grad", "grad-cam"]
    settled(viewer)


@pytest.mark.parametrize("kind", [SaliencyViewer, OcclusionViewer])
def test_a_patch_larger_than_the_picture_is_refused(kind: Any, face: np.ndarray) -> None:
    with pytest.raises(Exception, match="patch=500 is more than the picture has; give 1 to 64 pixels"):
        kind(image=face, patch=500)


def test_picture_caption_and_map_change_together(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(method=["gradient", "smooth grad"]))
    uploaded = demo.images(1, seed=8, label="boat")[0].image
    for change in ("tree", "car", uploaded, "tree"):
        viewer.image = change
        settled(viewer)
        there = shown(viewer.input_view)[2::4, 2::4, :3]
        assert np.abs(there / 255 - viewer.network.image(viewer.image)).max() < 0.01
        label, p = viewer.network.predict(viewer.image, 1)[0]
        assert f"{label} {p:.1%}" in viewer.input_caption.value
        assert np.array_equal(viewer.frame.image, viewer.network.image(viewer.image))


def test_weights_that_have_changed_are_seen_at_the_next_start(face: np.ndarray) -> None:
    module = copy.deepcopy(Network.demo().module)
    viewer = settled(SaliencyViewer(Network(module, size=64), face, method="smooth grad"))
    with torch.no_grad():
        list(module.parameters())[-1][2] += 1000
    viewer.bar.start.click()
    settled(viewer)
    assert "class 2 100.0%" in viewer.input_caption.value
    assert "class 2" in viewer.panels[0].caption.value


@pytest.mark.parametrize("kind", [SaliencyViewer, OcclusionViewer, ActivationExplorer])
def test_a_picture_that_cannot_be_read_leaves_the_one_before(kind: Any, face: np.ndarray) -> None:
    viewer = settled(kind(image={"good": face, "bad": "nowhere.png"}))
    before = shown(viewer.input_view)
    viewer.images.menu.value = "bad"
    settled(viewer)
    assert "nowhere.png does not exist" in viewer.status.value
    assert viewer.images.menu.value == "good"
    assert viewer.image is face
    assert np.array_equal(shown(viewer.input_view), before)


def test_clicks_that_come_too_late_do_nothing(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"]))
    first, second = (panel.remove for panel in viewer.panels)
    first.click()
    first.click()
    second.click()
    assert viewer.method == "grad-cam"
    viewer.method = tuple(METHODS)
    viewer.add.click()
    assert viewer.method == tuple(METHODS)
    assert not viewer.status.value


def test_a_class_that_is_chosen_is_explained(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, unit=("conv3", 5)))
    viewer.target = "car"
    settled(viewer)
    assert viewer.explain == "a class"
    assert "the score of car" in viewer.panels[0].caption.value
    with pytest.raises(ValueError, match="give target= .* or unit= .*, or say which one to explain="):
        SaliencyViewer(image=face, unit=("conv3", 5), target="car")


# -- RandomizationViewer ----------------------------------------------------------------------------------------------------


def test_the_method_and_the_class_of_a_randomization_can_be_changed(face: np.ndarray) -> None:
    viewer = settled(RandomizationViewer(image=face, target="face"))
    for change in ({"method": "grad-cam"}, {"target": "car"}, {"seed": 3}, {"unit": ("conv3", 5)}):
        before = viewer.frame
        viewer.set_trait(*next(iter(change.items())))
        settled(viewer)
        assert viewer.frame is not before
    assert viewer.menu.value == "grad-cam"
    with pytest.raises(Exception, match="no method 'grad'"):
        viewer.method = "grad"


def test_a_randomization_says_what_it_explains(face: np.ndarray) -> None:
    viewer = settled(RandomizationViewer(image=face, method="guided backprop", target="car"))
    assert "guided backprop of car" in viewer.caption.value
    assert "guided backprop of car" in viewer._page()[1][0]
    viewer.unit = ("conv3", 5)
    settled(viewer)
    assert "guided backprop of conv3, channel 5 at" in viewer.caption.value


def test_the_position_of_a_unit_stays_while_the_network_forgets(face: np.ndarray) -> None:
    viewer = settled(RandomizationViewer(image=face, unit=("conv3", 5)))
    maps = viewer.frame.arrays["maps"]
    net = viewer.network
    position = tuple(int(number) for number in re.search(r" at (\d+), (\d+)", viewer.caption.value).groups())
    top, left, bottom, right = net.layers["conv3"].box(position)
    for heat in maps:
        outside = heat.copy()
        outside[top:bottom, left:right] = 0
        assert heat.any()
        assert not outside.any()
