"""SaliencyViewer and its panels, without a browser."""

from __future__ import annotations

import copy
import html
import re
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from torch import nn
from widget_helpers import PATIENCE, settled, shown

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
from convis_widgets.core.attribution.method import ATTRIBUTION_METHODS, attribution_method
from convis_widgets.core.knob import Knob
from convis_widgets.core.registry import TECHNIQUES, technique
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.grad_cam import grad_cam
from convis_widgets.techniques.attribution.guided_backprop import guided_backprop
from convis_widgets.techniques.attribution.occlusion import occlusion
from convis_widgets.techniques.attribution.saliency import saliency
from convis_widgets.widgets.drawing.colors import COLORMAPS

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return demo.images(1, seed=4, label="face")[0].image


def plain_text(markup: str) -> str:
    """The text of an HTML value, without tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", markup))


def test_saliency_viewer_shows_raw_value_range() -> None:
    viewer = settled(SaliencyViewer(target="face"))
    panel, heat = viewer.panels[0], viewer.frame.heat
    assert panel.scale.low.value == f"{heat.min():.3g}"
    limit = f"{panel.limits[1]:.3g}"
    assert NUMBER.findall(panel.scale.high.value) == [limit]
    assert panel.scale.high.value != limit, "a clipped scale is marked as such"
    assert NUMBER.findall(plain_text(panel.range.value)) == [f"{heat.min():.3g}", f"{heat.max():.3g}"]
    beyond = heat > panel.limits[1]
    assert 0.004 < beyond.mean() < 0.006, "a few outliers do not determine the color scale"
    viewer.method = "grad-cam"
    settled(viewer)
    assert panel.scale.high.value == f"{viewer.frame.heat.max():.3g}"


def test_saliency_viewer_keeps_map_after_stop_and_restarts() -> None:
    viewer = SaliencyViewer(method="occlusion", occlusion_patch_size=4, occlusion_stride=1)
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
    assert re.findall(r"\d+", viewer.bar.text.value)[0] == str(viewer.frame.step)


def test_saliency_viewer_step_button_pauses_after_first_frame() -> None:
    viewer = settled(SaliencyViewer(method="occlusion", occlusion_patch_size=30, occlusion_stride=2))
    viewer.bar.on_step()
    paused = threading.Event()
    viewer.run.subscribe(lambda run: paused.set() if run.state == "paused" else None)
    if viewer.run.state != "paused":
        assert paused.wait(PATIENCE)
    assert viewer.run.last.step == 0
    viewer.close()


def test_saliency_viewer_restarts_when_knob_changes() -> None:
    viewer = settled(SaliencyViewer(method="occlusion", occlusion_patch_size=20, occlusion_stride=10))
    first = viewer.run
    viewer.controls["occlusion_patch_size"].value = 32
    settled(viewer)
    assert viewer.run is not first
    assert len(viewer.frame.arrays["rows"]) == 5


def test_saliency_viewer_unknown_class_error_suggests_names() -> None:
    with pytest.raises(ValueError, match=r"'butterfy'.*\bbutterfly\b"):
        SaliencyViewer(target="butterfy")


@pytest.mark.parametrize(
    ("knob", "message"),
    [({"occlusion_baseline": "pink"}, "'pink'.*'mean'.*'gray'"), ({"occlusion_patch_size": -3}, r"-3\b.*\b1\b")],
)
def test_saliency_viewer_rejects_invalid_knob_value(knob: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaliencyViewer(**knob)
    viewer = settled(SaliencyViewer())
    with pytest.raises(ValueError, match=message):
        viewer.set_trait(*next(iter(knob.items())))


def test_saliency_viewer_color_limits_have_minimum_for_occlusion() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(module[3].weight)
    viewer = settled(SaliencyViewer(Network(module, size=16), np.full((16, 16, 3), 0.2, np.float32), method="occlusion"))
    assert viewer.panels[0].limits == (-0.001, 0.001)
    assert shown(viewer.panels[0].map_view).min() > 235


@pytest.mark.parametrize("name", ATTRIBUTION_METHODS)
def test_saliency_viewer_each_method_shows_its_technique_map(name: str, face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=name, target="face"))
    assert not viewer.errors
    frames = ATTRIBUTION_METHODS[name].technique(viewer.network, face, target="face")
    assert np.array_equal(viewer.frame.heat, Run(frames).run().heat)
    assert shown(viewer.panels[0].map_view).std() > 3
    assert "face" in viewer.panels[0].text
    viewer.close()


def test_saliency_viewer_shows_methods_side_by_side(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"], target="face"))
    assert [panel.method for panel in viewer.panels] == ["gradient", "grad-cam"]
    for name, method in (("gradient", saliency), ("grad-cam", grad_cam)):
        expected = Run(method(viewer.network, face, target="face")).run().heat
        assert np.array_equal(viewer.frames[name].heat, expected)
    arrays = [panel.map_view.array for panel in viewer.panels]
    assert not np.array_equal(*arrays)
    height, width, _ = viewer.snapshot().shape
    assert height > 2 * 256, "controls below a map are included"
    assert 3 * 256 < width < 4 * 256


def test_saliency_viewer_adds_replaces_and_removes_panels(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face))
    first = viewer.frame
    viewer.add_method.click()
    settled(viewer)
    assert viewer.method == ("gradient", "guided backprop")
    assert viewer.frames["gradient"] is first, "an existing map is not recomputed"
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
    assert viewer.method == ("gradient", "occlusion"), "the two panels swap methods"
    viewer.method = [saliency, "grad_cam"]
    assert viewer.method == ("gradient", "grad-cam")
    for wrong, message in (
        ("gradcam", "'gradcam'.*grad-cam"),
        ([], "gradient.*guided backprop"),
        (["gradient", "saliency"], "gradient.*guided backprop"),
    ):
        with pytest.raises(Exception, match=message):
            viewer.method = wrong
    viewer.method = tuple(ATTRIBUTION_METHODS)
    assert viewer.add_method.disabled


def test_saliency_viewer_interleaves_methods(face: np.ndarray) -> None:
    """A slow method does not delay the others."""
    viewer = settled(SaliencyViewer(image=face, occlusion_patch_size=8, occlusion_stride=1))
    order = []

    def follow(run: Run) -> None:
        order.append({name: frame.step for name, frame in viewer.frames.items()})

    viewer.method = ("occlusion", "smooth grad")
    viewer.run.subscribe(follow)
    settled(viewer)
    last = viewer.frames["occlusion"].step
    assert viewer.frames["occlusion"].done
    assert any(seen.get("smooth grad", 0) == 32 and seen.get("occlusion", 0) < last for seen in order)


def test_saliency_viewer_unsupported_method_does_not_stop_others(face: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    viewer = settled(SaliencyViewer(Network(module, size=64), face, method=["guided backprop", "gradient"]))
    assert viewer.run.state == "done"
    assert re.search(r"\b1\b.*GELU", plain_text(viewer.panels[0].caption.value))
    assert viewer.panels[0].map_view.alt
    assert viewer.panels[1].frame is not None
    assert not viewer.status.value
    viewer.method = "gradient"
    assert "GELU" not in viewer.panels[0].caption.value


def test_saliency_viewer_without_opencv_lacks_only_segmentation(face: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    viewer = settled(SaliencyViewer(image=face, method=["segmentation", "gradient"]))
    assert "OpenCV" in viewer.panels[0].caption.value
    assert viewer.frames["gradient"].done


def test_saliency_viewer_explains_unit_of_linked_widget(face: np.ndarray) -> None:
    grid, viewer = FilterGrid(), SaliencyViewer(image=face, method="guided backprop", target="face")
    link(grid, viewer)
    grid.unit = ("conv3", 7)
    assert viewer.target_type == "unit"
    settled(viewer)
    expected = Run(guided_backprop(viewer.network, face, unit=("conv3", 7))).run().heat
    assert np.array_equal(viewer.frame.heat, expected)
    assert re.search(r"\bconv3\b\D+\b7\b", viewer.panels[0].text)
    grid.unit = ("", 3)
    settled(viewer)
    assert (viewer.target_type, viewer.target) == ("class", 3)
    assert np.array_equal(viewer.frame.heat, Run(guided_backprop(viewer.network, face, target=3)).run().heat)
    grid.unit = ("conv1", 3)
    settled(viewer)
    assert np.array_equal(viewer.frame.heat, Run(guided_backprop(viewer.network, face, unit=("conv1", 3))).run().heat)
    viewer.controls["unit"].number.value = 4
    settled(viewer)
    assert grid.unit == Unit("conv1", 4)
    viewer.controls["unit"].menu.value = "conv2"
    assert viewer.unit == Unit("conv2", 0)
    viewer.target_type = "class"
    settled(viewer)
    assert np.array_equal(viewer.frame.heat, Run(guided_backprop(viewer.network, face, target=3)).run().heat)


def test_saliency_viewer_unit_argument_applies_to_every_method(face: np.ndarray) -> None:
    viewer = settled(
        SaliencyViewer(
            image=face, method=list(ATTRIBUTION_METHODS), unit=("conv4", 9), occlusion_patch_size=16, occlusion_stride=8
        )
    )
    assert not viewer.errors
    assert not viewer.status.value
    assert all(re.search(r"\bconv4\b\D+\b9\b", panel.text) for panel in viewer.panels)
    expected = Run(occlusion(viewer.network, face, unit=("conv4", 9), patch_size=16, stride=8)).run().heat
    assert np.array_equal(viewer.frames["occlusion"].heat, expected)


def test_saliency_viewer_hover_shows_raw_value_of_every_map(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"], target="face"))
    viewer.panels[1].map_view.on_pointer({"type": "move", "x": 4 * 37 + 2, "y": 4 * 21 + 3})
    for name in ("gradient", "grad-cam"):
        value = re.escape(f"{viewer.frames[name].heat[21, 37]:.3g}")
        assert re.search(rf"{name}\D*{value}", plain_text(viewer.hover.value))
    assert re.search(r"\b21\D+37\b", plain_text(viewer.hover.value))
    viewer.panels[1].map_view.on_pointer({"type": "leave"})
    assert not viewer.hover.value


def test_saliency_viewer_mask_and_cutout_keep_highest_values(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, display="mask", mask_fraction=0.2, target="face"))
    heat, panel = viewer.frame.heat, viewer.panels[0]
    order = np.argsort(heat.ravel())[::-1][: round(0.2 * heat.size)]
    expected = np.zeros(heat.size, bool)
    expected[order] = True
    mask = panel.detail_view.array[2::4, 2::4, 0] == 255
    assert (mask.ravel() != expected).mean() < 0.001
    viewer.display = "cut-out"
    pixels = panel.detail_view.array[2::4, 2::4]
    assert np.array_equal(pixels[mask], (face[mask] * 255 + 0.5).astype(np.uint8))
    assert len(np.unique(pixels[~mask], axis=0)) <= 2, "checkerboard background"
    viewer.controls["mask_fraction"].value, viewer.display = 0.5, "mask"
    assert 0.49 < (panel.detail_view.array[..., 0] == 255).mean() < 0.51


def test_saliency_viewer_segmentation_mask_view_uses_its_mask(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="segmentation", display="mask"))
    assert np.array_equal(viewer.panels[0].detail_view.array[2::4, 2::4, 0] == 255, viewer.frame.arrays["mask"])


def test_saliency_viewer_constant_map_has_empty_mask() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(module[0].weight)
    viewer = settled(SaliencyViewer(Network(module, size=16), np.full((16, 16, 3), 0.2, np.float32), display="mask"))
    assert viewer.panels[0].detail_view.array.max() == 0


def test_saliency_viewer_sanity_check_randomizes_network_copy(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="grad-cam", target="face"))
    weights = viewer.network.module.conv1.weight.clone()
    viewer.sanity_check.click()
    check = settled(viewer.randomization)
    assert check.method == "grad-cam"
    assert len(check.strip.children) == 1 + len(check.frame.arrays["maps"]) > 5
    assert np.array_equal(check.frame.arrays["maps"][0], viewer.frame.heat)
    assert not np.array_equal(check.frame.arrays["maps"][-1], viewer.frame.heat)
    assert torch.equal(weights, viewer.network.module.conv1.weight)
    viewer.sanity_check.click()
    assert check.closed
    check = viewer.randomization
    viewer.close()
    assert check.closed


def test_saliency_viewer_integrated_gradients_shows_completeness(face: np.ndarray) -> None:
    viewer = settled(
        SaliencyViewer(
            image=face,
            method="integrated gradients",
            target="face",
            integrated_gradients_steps=8,
            integrated_gradients_baseline="white",
        )
    )
    panel, scalars = viewer.panels[0], viewer.frame.scalars
    assert "white" in panel.caption.value
    assert f"{scalars['rise']:.3g}" in plain_text(panel.detail_caption.value)
    assert f"{scalars['completeness error']:.2g}" in plain_text(panel.detail_caption.value)


def test_saliency_viewer_knob_recomputes_only_its_method(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["integrated gradients", "smooth grad"]))
    before = dict(viewer.frames)
    viewer.controls["smooth_grad_samples"].value = 5
    settled(viewer)
    assert viewer.frames["smooth grad"].total == 5
    assert viewer.frames["integrated gradients"] is before["integrated gradients"]
    viewer.controls["integrated_gradients_baseline"].value = "white"
    settled(viewer)
    assert viewer.frames["integrated gradients"].arrays["baseline"].min() == 1


def test_saliency_viewer_target_trait_accepts_class_name() -> None:
    viewer = settled(SaliencyViewer())
    viewer.target = "fish"
    assert viewer.target == viewer.controls["target"].value == viewer.network.class_index("fish")
    with pytest.raises(ValueError, match=r"'fsh'.*\bfish\b"):
        viewer.target = "fsh"


def test_saliency_viewer_caption_shows_predicted_and_target_class(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, target="car"))
    for name in ("face", "car"):
        probability = f"{viewer.predictions[viewer.network.class_index(name)]:.1%}"
        assert re.search(rf"\b{name}\D*{probability}", plain_text(viewer.input_caption.value))


def test_saliency_viewer_inactive_unit_shows_message_and_zero_color(face: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        module[0].bias[1] = -99
    viewer = settled(SaliencyViewer(Network(module, size=64), face, unit=("1", 1)))
    caption = plain_text(viewer.panels[0].caption.value)
    assert re.search(r"\b1\D+1\b", caption)
    assert re.search(r"(?i)\boff\b|inactive|zero", caption)
    assert (shown(viewer.panels[0].map_view) == COLORMAPS["viridis"][0]).all()


def test_saliency_viewer_occlusion_mask_drops_negligible_values(face: np.ndarray) -> None:
    viewer = settled(
        SaliencyViewer(
            image=face, method="occlusion", display="mask", occlusion_patch_size=8, occlusion_stride=8, mask_fraction=1.0
        )
    )
    kept = shown(viewer.panels[0].detail_view)[::4, ::4, 0] > 0
    assert np.array_equal(kept, viewer.frame.heat > ATTRIBUTION_METHODS["occlusion"].min_range)
    assert 0 < kept.mean() < 1
    assert f"{kept.mean():.0%}" in plain_text(viewer.panels[0].detail_caption.value)


def test_saliency_viewer_closes_sanity_check_on_change(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"]))
    for change in ({"target": 2}, {"method": "grad-cam"}, {"target_type": "unit"}):
        viewer.sanity_check.click()
        check = viewer._bottom.children[0]
        viewer.set_trait(*next(iter(change.items())))
        assert check.closed
        assert not viewer._bottom.children


def test_saliency_viewersnapshot_panels_include_every_method(face: np.ndarray) -> None:
    viewer = SaliencyViewer(
        image=face, method=["occlusion", "smooth grad", "grad-cam"], occlusion_patch_size=4, occlusion_stride=1
    )
    viewer._wait_for_snapshot()
    panels, _ = viewer.snapshot_panels()
    assert [title for title, _ in panels][1:] == ["occlusion", "smooth grad", "grad-cam"]
    settled(viewer)


@pytest.mark.parametrize(("kind", "trait"), [(SaliencyViewer, "occlusion_patch_size"), (OcclusionViewer, "patch_size")])
def test_attribution_viewers_reject_patch_larger_than_image(kind: Any, trait: str, face: np.ndarray) -> None:
    with pytest.raises(Exception, match=r"patch\D*500\b.*\b1\D+64\b"):
        kind(image=face, **{trait: 500})


def test_saliency_viewer_updates_image_caption_and_map_together(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(method=["gradient", "smooth grad"]))
    uploaded = demo.images(1, seed=8, label="boat")[0].image
    for change in ("tree", "car", uploaded, "tree"):
        viewer.image = change
        settled(viewer)
        there = shown(viewer.input_view)[2::4, 2::4, :3]
        assert np.abs(there / 255 - viewer.network.image(viewer.image)).max() < 0.01
        label, p = viewer.network.predict(viewer.image, 1)[0]
        assert re.search(rf"\b{label}\D*{p:.1%}", plain_text(viewer.input_caption.value))
        assert np.array_equal(viewer.frame.image, viewer.network.image(viewer.image))


def test_saliency_viewer_start_uses_changed_weights(face: np.ndarray) -> None:
    module = copy.deepcopy(Network.demo().module)
    viewer = settled(SaliencyViewer(Network(module, size=64), face, method="smooth grad"))
    with torch.no_grad():
        list(module.parameters())[-1][2] += 1000
    viewer.bar.start.click()
    settled(viewer)
    assert re.search(r"class 2\D*100\.0%", plain_text(viewer.input_caption.value))
    assert "class 2" in viewer.panels[0].caption.value


@pytest.mark.parametrize("kind", [SaliencyViewer, OcclusionViewer, ActivationExplorer])
def test_image_viewers_keep_previous_image_if_file_is_unreadable(kind: Any, face: np.ndarray) -> None:
    viewer = settled(kind(image={"good": face, "bad": "nowhere.png"}))
    before = shown(viewer.input_view)
    viewer.images.menu.value = "bad"
    settled(viewer)
    assert "nowhere.png" in viewer.status.value
    assert viewer.images.menu.value == "good"
    assert viewer.image is face
    assert np.array_equal(shown(viewer.input_view), before)


def test_saliency_viewer_ignores_stale_clicks(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["gradient", "grad-cam"]))
    first, second = (panel.remove for panel in viewer.panels)
    first.click()
    first.click()
    second.click()
    assert viewer.method == "grad-cam"
    viewer.method = tuple(ATTRIBUTION_METHODS)
    viewer.add_method.click()
    assert viewer.method == tuple(ATTRIBUTION_METHODS)
    assert not viewer.status.value


def test_saliency_viewer_explains_class_when_target_is_set(face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, unit=("conv3", 5)))
    viewer.target = "car"
    settled(viewer)
    assert viewer.target_type == "class"
    assert re.search(r"\bcar\b", viewer.panels[0].caption.value)
    with pytest.raises(ValueError, match="target.*unit.*target_type"):
        SaliencyViewer(image=face, unit=("conv3", 5), target="car")


# -- methods registered elsewhere -------------------------------------------------------------------------------------------


@pytest.fixture
def contrast_method() -> Iterator[None]:
    """A method registered after SaliencyViewer was created; another method has a knob `steps`, too."""

    @attribution_method("contrast", "{score} at {steps} steps with {weight}", signed=True, knobs=("steps", "weight"))
    @technique
    def contrast(
        net: Network,
        image: Any,
        *,
        target: int | str | None = None,
        unit: Any = None,
        steps: Annotated[int, Knob(1, 9)] = 3,
        weight: Annotated[float, Knob(0, 8)] = 0.5,
    ) -> Iterator[Frame]:
        pixels = net.image(image)
        yield Frame(1, 1, done=True, image=pixels, heat=steps + weight * (pixels.mean(2) - pixels.mean()))

    yield
    del ATTRIBUTION_METHODS["contrast"], TECHNIQUES["contrast"]


def test_saliency_viewer_offers_method_registered_at_run_time(contrast_method: None, face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="contrast", contrast_weight=2.0))
    assert "contrast" in viewer.panels[0].menu.options
    assert np.allclose(viewer.frame.heat, 3 + 2 * (face.mean(2) - face.mean()), atol=1e-5)
    control = viewer.controls["contrast_weight"]
    assert (control.value, control.max, control.layout.display) == (2, 8, "")
    assert viewer.controls["occlusion_patch_size"].layout.display == "none"
    control.value = 4.0
    settled(viewer)
    assert np.allclose(viewer.frame.heat, 3 + 4 * (face.mean(2) - face.mean()), atol=1e-5)
    assert re.search(r"\b3\b.*\b4\b", viewer.panels[0].text)
    for wrong in ({"contrast_weight": 9}, {"contrast_wieght": 1}):
        with pytest.raises((ValueError, TypeError), match="contrast_w.*(8|contrast_weight)"):
            SaliencyViewer(image=face, **wrong)
    viewer.method = "gradient"
    assert control.layout.display == "none"


def test_saliency_viewer_equally_named_knobs_are_independent(contrast_method: None, face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method=["contrast", "integrated gradients"], contrast_steps=2))
    before = viewer.frames["integrated gradients"]
    assert (viewer.contrast_steps, viewer.integrated_gradients_steps, before.total) == (2, 64, 64)
    viewer.controls["contrast_steps"].value = 7
    settled(viewer)
    assert viewer.frames["contrast"].heat.mean() == pytest.approx(7, abs=1e-4)
    assert viewer.frames["integrated gradients"] is before
    viewer.controls["integrated_gradients_steps"].value = 4
    settled(viewer)
    assert viewer.frames["integrated gradients"].total == 4
    assert (viewer.contrast_steps, viewer.frames["contrast"].heat.mean()) == (7, pytest.approx(7, abs=1e-4))


def test_attribution_method_rejects_unknown_knob() -> None:
    with pytest.raises(ValueError, match=r"'step'.*\bsteps\b"):
        attribution_method("wrong", "", knobs=("step",))(TECHNIQUES["integrated_gradients"])
    assert "wrong" not in ATTRIBUTION_METHODS


def test_attribution_method_rejects_unknown_caption_field() -> None:
    with pytest.raises(ValueError, match="scores.*wrong.*score"):
        attribution_method("wrong", "{scores}")(TECHNIQUES["saliency"])
    assert "wrong" not in ATTRIBUTION_METHODS


def test_attribution_method_menu_order() -> None:
    assert list(ATTRIBUTION_METHODS)[:6] == [
        "gradient", "guided backprop", "deconvnet", "smooth grad", "integrated gradients", "grad-cam",
    ]  # fmt: skip
    assert list(ATTRIBUTION_METHODS)[-2:] == ["occlusion", "segmentation"]


def test_saliency_viewer_hidden_knob_does_not_restart_computation(face: np.ndarray) -> None:
    viewer = SaliencyViewer(image=face, method=["gradient", "occlusion"], occlusion_patch_size=4, occlusion_stride=1)
    run, begun = viewer.run, threading.Event()
    run.subscribe(lambda _run: begun.set() if "gradient" in viewer.frames else None)
    assert "gradient" in viewer.frames or begun.wait(PATIENCE)
    viewer.smooth_grad_samples = 3
    assert viewer.run is run
    viewer.method = ("smooth grad", "occlusion")
    settled(viewer)
    assert viewer.frames["smooth grad"].total == 3


@pytest.mark.parametrize("color", [0.25, (0.1, 0.2, 0.3)])
def test_saliency_viewer_baseline_accepts_color(color: Any, face: np.ndarray) -> None:
    viewer = settled(SaliencyViewer(image=face, method="occlusion", occlusion_baseline=color, occlusion_stride=20))
    assert np.allclose(viewer.frame.arrays["baseline"], color)
    assert viewer.controls["occlusion_baseline"].value is None
    viewer.controls["occlusion_baseline"].value = "white"
    assert viewer.occlusion_baseline == "white"


# -- RandomizationViewer ----------------------------------------------------------------------------------------------------


def test_randomization_viewer_recomputes_when_settings_change(face: np.ndarray) -> None:
    viewer = settled(RandomizationViewer(image=face, target="face"))
    for change in ({"method": "grad-cam"}, {"target": "car"}, {"seed": 3}, {"unit": ("conv3", 5)}):
        before = viewer.frame
        viewer.set_trait(*next(iter(change.items())))
        settled(viewer)
        assert viewer.frame is not before
    assert viewer.controls["method"].value == "grad-cam"
    with pytest.raises(Exception, match="'grad'"):
        viewer.method = "grad"


def test_randomization_viewer_caption_names_method_and_target(face: np.ndarray) -> None:
    viewer = settled(RandomizationViewer(image=face, method="guided backprop", target="car"))
    for text in (viewer.caption.value, viewer.snapshot_panels()[1][0]):
        assert re.search(r"guided backprop.*\bcar\b", text)
    viewer.unit = ("conv3", 5)
    settled(viewer)
    assert re.search(r"guided backprop.*\bconv3\D+5\D+\d+\D+\d+", viewer.caption.value)


def test_randomization_viewer_keeps_unit_position_at_every_stage(face: np.ndarray) -> None:
    viewer = settled(RandomizationViewer(image=face, unit=("conv3", 5)))
    maps = viewer.frame.arrays["maps"]
    net = viewer.network
    position = tuple(int(number) for number in re.search(r"conv3\D+5\D+(\d+)\D+(\d+)", viewer.caption.value).groups())
    top, left, bottom, right = net.layers["conv3"].box(position)
    for heat in maps:
        outside = heat.copy()
        outside[top:bottom, left:right] = 0
        assert heat.any()
        assert not outside.any()
