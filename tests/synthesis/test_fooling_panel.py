"""FoolingPanel, without a browser; tests shared by all image panels are in test_image_panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import traitlets
from widget_helpers import opening, settled, shown

from convis_widgets import FoolingPanel, Network
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.synthesis.fooling import fooling
from convis_widgets.widgets.synthesis.fooling_panel import magnify_difference

IMAGES = {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate("ab")}
PIXELS = {name: np.floor(image * 255 + 0.5).astype(np.uint8) for name, image in IMAGES.items()}


@pytest.fixture
def open_panel() -> Iterator[Callable[..., FoolingPanel]]:
    with opening(FoolingPanel) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> FoolingPanel:
    return settled(open_panel(tiny, IMAGES, lr=0.001, iterations=5))


def small(view: Any) -> np.ndarray:
    """The original of a 16-pixel image that is shown enlarged to 256."""
    image = shown(view).reshape(16, 16, 16, 16, 3)
    assert (image == image[:, :1, :, :1]).all(), "enlarged without interpolation"
    return image[:, 0, :, 0]


def last_frame(net: Network, name: str = "a", **kwargs: Any) -> Frame:
    return Run(fooling(net, PIXELS[name], **({"lr": 0.001, "iterations": 5} | kwargs))).run()


def text_of(widget: Any) -> str:
    """The text of an HTML widget, without tags."""
    return re.sub("<[^>]*>", " ", widget.value)


def magnified(difference: np.ndarray) -> int:
    """The factor by which a difference is magnified so that all but one of 200 values fit."""
    values = np.sort(np.abs(difference).ravel())
    return max(1, int(127 / max(1, np.interp(0.995 * (len(values) - 1), np.arange(len(values)), values))))


# -- three images ------------------------------------------------------------------------------------------------------


def test_fooling_panel_shows_original_result_and_difference(panel: FoolingPanel) -> None:
    now = np.floor(last_frame(panel.network).image * 255 + 0.5).astype(np.uint8)
    difference = now.astype(int) - PIXELS["a"]
    most = np.abs(difference).max()
    assert 0 < most < 60
    times = magnified(difference)
    assert np.array_equal(small(panel.original_view), PIXELS["a"])
    assert np.array_equal(small(panel.view), now)
    assert np.abs(small(panel.difference_view) - (127.5 + times * difference).clip(0, 255)).max() <= 0.5
    assert re.search(rf"\b{times}\b", text_of(panel.captions[2]))
    assert f"Linf {most}/255" in panel.captions[2].value
    assert f"L2 {np.linalg.norm(difference / 255):.2g}" in panel.captions[2].value
    (was, p), (sees, q) = (panel.network.predict(pixels, 1)[0] for pixels in (PIXELS["a"], now))
    assert was in panel.captions[0].value
    assert f"{p:.1%}" in panel.captions[0].value
    assert sees in panel.captions[1].value
    assert f"{q:.1%}" in panel.captions[1].value


def test_fooling_panel_scrub_updates_difference(panel: FoolingPanel) -> None:
    for index in (0, 2):
        panel.scrub.value = index
        now = panel.history.images[index].astype(int)
        most = np.abs(now - PIXELS["a"]).max()
        assert f"Linf {most}/255" in panel.captions[2].value
        difference = now - PIXELS["a"]
        expected = (127.5 + magnified(difference) * difference).clip(0, 255)
        assert np.abs(small(panel.difference_view) - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("change", "times", "shade"), [(0, 127, 127), (1, 127, 254), (3, 42, 253), (-3, 42, 1), (200, 1, 255)]
)
def test_magnify_difference_uses_full_display_range(change: int, times: int, shade: int) -> None:
    before = np.full((2, 2, 3), 50, np.uint8)
    after = before.astype(int)
    after[1] += change
    image, factor = magnify_difference(after.astype(np.uint8), before)
    assert factor == times
    assert image[1, 1].tolist() == [shade] * 3
    assert image[0, 0].tolist() == [127] * 3, "unchanged pixels are gray"


def test_magnify_difference_ignores_outlier_pixels() -> None:
    before = np.full((40, 40, 3), 50, np.uint8)
    after = before + np.uint8(3)
    after[0, :2] = 200
    image, times = magnify_difference(after, before)
    assert times == 42
    assert image[20, 20].tolist() == [253] * 3
    assert image[0, 0].tolist() == [255] * 3


def test_fooling_panel_snapshot_contains_all_three_images(panel: FoolingPanel) -> None:
    images, _lines = panel.snapshot_panels()
    assert len(images) == 3
    assert all(title for title, _ in images)
    assert re.search(r"\b5\b", images[1][0]), "the step"
    assert np.array_equal(images[2][1], shown(panel.difference_view))


# -- target class ------------------------------------------------------------------------------------------------------


def others(net: Network, name: str = "a") -> list[int]:
    """Classes other than the predicted one, least probable first."""
    return net.predict_proba(PIXELS[name]).argsort()[:-1].tolist()


def test_fooling_panel_target_defaults_to_least_probable_class(panel: FoolingPanel) -> None:
    least, other = others(panel.network)[:2]
    assert panel.controls["target"].value is None
    assert np.array_equal(panel.frame.image, last_frame(panel.network, target=least).image)
    assert "least" in panel.caption.value
    panel.target = panel.network.labels[other]
    settled(panel)
    assert (panel.target, panel.controls["target"].value) == (other, other)
    assert np.array_equal(panel.frame.image, last_frame(panel.network, target=other).image)
    assert panel.network.labels[other] in panel.caption.value
    panel.controls["target"].box.value = "least probable"
    settled(panel)
    assert panel.target is None
    assert np.array_equal(panel.frame.image, last_frame(panel.network).image)


@pytest.mark.parametrize("method", ["pgd", "fgsm"])
def test_fooling_panel_restarts_on_method_change(method: str, panel: FoolingPanel) -> None:
    panel.controls["method"].value = method
    panel.epsilon = 4 / 255
    settled(panel)
    expected = last_frame(panel.network, method=method, epsilon=4 / 255)
    assert np.array_equal(panel.frame.image, expected.image)
    assert panel.frame.step == (1 if method == "fgsm" else expected.step)


def test_fooling_panel_reports_success_and_stops(tiny: Network, open_panel: Any) -> None:
    target = others(tiny)[-1]
    panel = settled(open_panel(tiny, IMAGES, target=target, lr=0.02, iterations=200))
    assert panel.frame.scalars["fooled"] == 1
    assert panel.run.state == "done"
    steps = panel.frame.step
    assert steps == last_frame(tiny, target=target, lr=0.02, iterations=200).step < 200
    assert re.search(rf"(?i)fooled.*\b{steps}\b", text_of(panel.caption))
    assert "not fooled" not in panel.caption.value
    assert tiny.predict(small(panel.view), 1)[0][0] == tiny.labels[target], "the displayed image"
    assert tiny.labels[target] in panel.captions[1].value
    panel.lr, panel.iterations = 1e-4, 1
    panel.bar.on_start()
    settled(panel)
    assert re.search(r"(?i)not fooled.*\b1\b", text_of(panel.caption))


def test_fooling_panel_rejects_class_already_predicted(panel: FoolingPanel) -> None:
    already = int(panel.network.predict_proba(PIXELS["b"]).argmax())
    panel.images.menu.value = "b"
    settled(panel)
    panel.target = already
    settled(panel)
    assert "tiny" in panel.status.value
    assert panel.network.labels[already] in panel.status.value
    assert np.array_equal(small(panel.original_view), PIXELS["b"])
    assert np.array_equal(small(panel.view), PIXELS["b"])
    assert (small(panel.difference_view) == 127).all()
    assert panel.captions[2].value == ""
    panel.target = others(panel.network, "b")[0]
    settled(panel)
    assert not panel.status.value
    assert np.array_equal(panel.frame.image, last_frame(panel.network, "b").image)


def test_fooling_panel_rejects_unknown_class(tiny: Network, panel: FoolingPanel) -> None:
    with pytest.raises((ValueError, traitlets.TraitError), match=r"(?=.*tiny)(?=.*\b3\b)(?=.*\b9\b)"):
        FoolingPanel(tiny, IMAGES, target=9)
    with pytest.raises((ValueError, traitlets.TraitError), match=r"(?=.*tiny)(?=.*\b3\b)(?=.*\b9\b)"):
        panel.target = 9
    panel.controls["target"].box.value = "giraffe"
    assert "giraffe" in panel.controls["target"].hint.value
    assert panel.target is None


def test_fooling_panel_with_gray_network_counts_difference_once(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, IMAGES, lr=0.004, iterations=4))
    before, now = small(panel.original_view), small(panel.view)
    assert (before[..., 0] == before[..., 1]).all()
    difference = (now[..., 0].astype(float) - before[..., 0]) / 255
    assert panel.frame.scalars["l2"] == pytest.approx(np.linalg.norm(difference), abs=1e-4)
    assert f"L2 {np.linalg.norm(difference):.2g}" in panel.captions[2].value
