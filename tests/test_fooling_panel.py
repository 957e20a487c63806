"""FoolingPanel, without a browser; what all panels share that begin with a picture is in test_picture_panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import traitlets
from seen import opening, settled, shown

from convis_widgets import FoolingPanel, Network
from convis_widgets.core import Frame, Run
from convis_widgets.techniques import fooling

PICTURES = {name: np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32) for seed, name in enumerate("ab")}
PIXELS = {name: np.floor(picture * 255 + 0.5).astype(np.uint8) for name, picture in PICTURES.items()}


@pytest.fixture
def open_panel() -> Iterator[Callable[..., FoolingPanel]]:
    with opening(FoolingPanel) as make:
        yield make


@pytest.fixture
def panel(tiny: Network, open_panel: Any) -> FoolingPanel:
    return settled(open_panel(tiny, PICTURES, rate=0.001, iterations=5))


def small(view: Any) -> np.ndarray:
    """A picture of 16 pixels that is shown enlarged to 256."""
    picture = shown(view).reshape(16, 16, 16, 16, 3)
    assert (picture == picture[:, :1, :, :1]).all(), "crisp pixels"
    return picture[:, 0, :, 0]


def last(net: Network, name: str = "a", **words: Any) -> Frame:
    return Run(fooling(net, PIXELS[name], **({"rate": 0.001, "iterations": 5} | words))).run()


def magnified(difference: np.ndarray) -> int:
    """How often a difference is shown so that all but one of 200 values fit."""
    values = np.sort(np.abs(difference).ravel())
    return max(1, int(127 / max(1, np.interp(0.995 * (len(values) - 1), np.arange(len(values)), values))))


# -- three pictures ----------------------------------------------------------------------------------------------------


def test_three_pictures_are_side_by_side_and_the_third_is_the_difference_magnified(panel: FoolingPanel) -> None:
    now = np.floor(last(panel.network).image * 255 + 0.5).astype(np.uint8)
    difference = now.astype(int) - PIXELS["a"]
    most = np.abs(difference).max()
    assert 0 < most < 60
    times = magnified(difference)
    assert np.array_equal(small(panel.before), PIXELS["a"])
    assert np.array_equal(small(panel.view), now)
    assert np.abs(small(panel.difference) - (127.5 + times * difference).clip(0, 255)).max() <= 0.5
    assert f"difference x {times}" in panel.captions[2].value
    assert f"Linf {most}/255" in panel.captions[2].value
    assert f"L2 {np.linalg.norm(difference / 255):.2g}" in panel.captions[2].value
    (was, p), (sees, q) = (panel.network.predict(pixels, 1)[0] for pixels in (PIXELS["a"], now))
    assert f"as it was: {was} ({p:.0%})" in panel.captions[0].value
    assert f"as it is: {sees} ({q:.0%})" in panel.captions[1].value


def test_looking_back_the_difference_is_that_of_the_picture_on_screen(panel: FoolingPanel) -> None:
    for index in (0, 2):
        panel.scrub.value = index
        now = panel.history.pictures[index].astype(int)
        most = np.abs(now - PIXELS["a"]).max()
        assert f"Linf {most}/255" in panel.captions[2].value
        difference = now - PIXELS["a"]
        expected = (127.5 + magnified(difference) * difference).clip(0, 255)
        assert np.abs(small(panel.difference) - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("change", "times", "shade"), [(0, 127, 127), (1, 127, 254), (3, 42, 253), (-3, 42, 1), (200, 1, 255)]
)
def test_a_difference_is_magnified_as_far_as_it_can_be_shown(
    panel: FoolingPanel, change: int, times: int, shade: int
) -> None:
    before = np.full((2, 2, 3), 50, np.uint8)
    after = before.astype(int)
    after[1] += change
    picture, found = panel._magnified(after.astype(np.uint8), before)
    assert found == times
    assert picture[1, 1].tolist() == [shade] * 3
    assert picture[0, 0].tolist() == [127] * 3, "what is as it was is gray"


def test_a_few_pixels_that_changed_most_do_not_hide_the_others(panel: FoolingPanel) -> None:
    before = np.full((40, 40, 3), 50, np.uint8)
    after = before + np.uint8(3)
    after[0, :2] = 200
    picture, times = panel._magnified(after, before)
    assert times == 42
    assert picture[20, 20].tolist() == [253] * 3
    assert picture[0, 0].tolist() == [255] * 3


def test_a_saved_page_shows_all_three(panel: FoolingPanel) -> None:
    pictures, _lines = panel._page()
    assert [title.split(" x ")[0] for title, _ in pictures] == ["as it was", "step 5", "difference"]
    assert np.array_equal(pictures[2][1], shown(panel.difference))


# -- the class that it is to become ------------------------------------------------------------------------------------


def others(net: Network, name: str = "a") -> list[int]:
    """Classes that a picture is not of, the least probable one first."""
    return net.probabilities_of(PIXELS[name]).argsort()[:-1].tolist()


def test_it_becomes_the_least_probable_class_or_another(panel: FoolingPanel) -> None:
    least, other = others(panel.network)[:2]
    assert panel.classes.value is None
    assert np.array_equal(panel.frame.image, last(panel.network, target=least).image)
    assert "the least probable class" in panel.caption.value
    panel.target = panel.network.labels[other]
    settled(panel)
    assert (panel.target, panel.classes.value) == (other, other)
    assert np.array_equal(panel.frame.image, last(panel.network, target=other).image)
    assert f"towards {panel.network.labels[other]}" in panel.caption.value
    panel.classes.box.value = "the least probable"
    settled(panel)
    assert panel.target is None
    assert np.array_equal(panel.frame.image, last(panel.network).image)


@pytest.mark.parametrize("method", ["pgd", "fgsm"])
def test_another_rule_begins_anew(method: str, panel: FoolingPanel) -> None:
    panel.controls["method"].value = method
    panel.epsilon = 4 / 255
    settled(panel)
    expected = last(panel.network, method=method, epsilon=4 / 255)
    assert np.array_equal(panel.frame.image, expected.image)
    assert panel.frame.step == (1 if method == "fgsm" else expected.step)


def test_when_it_is_fooled_that_is_said_and_it_ends(tiny: Network, open_panel: Any) -> None:
    target = others(tiny)[-1]
    panel = settled(open_panel(tiny, PICTURES, target=target, rate=0.02, iterations=200))
    assert panel.frame.scalars["fooled"] == 1
    assert panel.run.state == "done"
    steps = panel.frame.step
    assert steps == last(tiny, target=target, rate=0.02, iterations=200).step < 200
    assert f"fooled after {steps} step" in panel.caption.value
    assert tiny.predict(small(panel.view), 1)[0][0] == tiny.labels[target], "the picture that is seen"
    assert f"as it is: {tiny.labels[target]}" in panel.captions[1].value
    panel.rate, panel.iterations = 1e-4, 1
    panel.bar.on_start()
    settled(panel)
    assert "not fooled, given up after 1 step" in panel.caption.value


def test_a_picture_of_that_class_already_is_told_and_no_other_difference_is_left(panel: FoolingPanel) -> None:
    already = int(panel.network.probabilities_of(PIXELS["b"]).argmax())
    panel.images.menu.value = "b"
    settled(panel)
    panel.target = already
    settled(panel)
    assert f"tiny sees {panel.network.labels[already]} here already; choose another class" in panel.status.value
    assert np.array_equal(small(panel.before), PIXELS["b"])
    assert np.array_equal(small(panel.view), PIXELS["b"])
    assert (small(panel.difference) == 127).all()
    assert panel.captions[2].value == ""
    panel.target = others(panel.network, "b")[0]
    settled(panel)
    assert not panel.status.value
    assert np.array_equal(panel.frame.image, last(panel.network, "b").image)


def test_a_class_that_there_is_not_is_told(tiny: Network, panel: FoolingPanel) -> None:
    with pytest.raises((ValueError, traitlets.TraitError), match="tiny has classes 0 to 3, not 9"):
        FoolingPanel(tiny, PICTURES, target=9)
    with pytest.raises((ValueError, traitlets.TraitError), match="tiny has classes 0 to 3, not 9"):
        panel.target = 9
    panel.classes.box.value = "giraffe"
    assert panel.classes.hint.value == "no class contains 'giraffe'"
    assert panel.target is None


def test_in_gray_the_difference_is_counted_once(tiny_gray: Network, open_panel: Any) -> None:
    panel = settled(open_panel(tiny_gray, PICTURES, rate=0.004, iterations=4))
    before, now = small(panel.before), small(panel.view)
    assert (before[..., 0] == before[..., 1]).all()
    difference = (now[..., 0].astype(float) - before[..., 0]) / 255
    assert panel.frame.scalars["l2"] == pytest.approx(np.linalg.norm(difference), abs=1e-4)
    assert f"L2 {np.linalg.norm(difference):.2g}" in panel.captions[2].value
