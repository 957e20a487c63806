from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.demo.toyscape import Scene, Toyscape
from convis_widgets.techniques.attribution.pointing_game import paired_difference, pointing_game, wilson
from convis_widgets.techniques.attribution.saliency import saliency


def method_returning(*heats: np.ndarray) -> Any:
    """A method that returns these maps, one per call."""
    left = iter(heats)
    return lambda _net, _image, target: iter([Frame(1, 1, done=True, heat=next(left))])


def one_hot_map(*pixels: tuple[int, int], side: int = 16) -> np.ndarray:
    """A map that is 1 at these pixels and 0 elsewhere."""
    heat = np.zeros((side, side), np.float32)
    for pixel in pixels:
        heat[pixel] = 1
    return heat


def run_game(net: Network, image: np.ndarray, heats: list[np.ndarray], masks: list[np.ndarray], **kwargs: Any) -> Frame:
    scenes = [(image, 0, mask) for mask in masks]
    return Run(pointing_game(net, scenes, method=method_returning(*heats), **kwargs)).run()


def test_pointing_game_matches_reference_on_toyscape(demo_net: Network) -> None:
    scenes = Toyscape(12, seed=5)
    frames = list(pointing_game(demo_net, scenes))
    hits, centers = [], []
    for frame, scene in zip(frames, scenes, strict=True):
        heat = next(saliency(demo_net, scene.image, target=scene.label)).heat
        row, col = max(((r, c) for r in range(64) for c in range(64)), key=lambda pixel: heat[pixel])
        hits.append(float(scene.mask[row, col]))
        centers.append(sum(float(scene.mask[r, c]) for r in (31, 32) for c in (31, 32)) / 4)
        assert np.array_equal(frame.image, scene.image)
        assert np.array_equal(frame.heat, heat)
        assert frame.arrays["hit"].tolist() == hits
        assert frame.arrays["center hit"].tolist() == centers
        assert frame.scalars["hits"] == sum(hits)
        assert frame.scalars["accuracy"] == pytest.approx(sum(hits) / len(hits))
        assert frame.scalars["center"] == pytest.approx(sum(centers) / len(centers))
        assert frame.scalars["gain"] == pytest.approx((sum(hits) - sum(centers)) / len(hits))
        for name in ("", "center ", "gain "):
            value = frame.scalars[name.strip() or "accuracy"]
            assert frame.scalars[f"{name}low"] <= value <= frame.scalars[f"{name}high"]
    assert 0 < sum(hits) <= 12


def test_pointing_game_explains_scene_label_not_prediction(tiny: Network, image: np.ndarray) -> None:
    targets = []

    def method(net: Network, array: np.ndarray, *, target: int) -> Iterator[Frame]:
        targets.append(target)
        yield from saliency(net, array, target=target)

    scenes = [(image, label, one_hot_map((0, 0)) > 0) for label in (3, "class 1", np.int64(2))]
    Run(pointing_game(tiny, scenes, method=method)).run()
    assert targets == [3, 1, 2]


def test_wilson_matches_scipy() -> None:
    from scipy.stats import binomtest  # a dependency of scikit-learn

    for hits, count in ((0, 1), (1, 1), (0, 40), (7, 9), (150, 200), (1000, 1000)):
        expected = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits, count) == pytest.approx(tuple(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe (1998), table II
        ((14, 5, 0, 22), (0.0115, 0.2265)),  # Altman et al., "Statistics with confidence" (2000), table 6.2
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen, Laake, "Statistical analysis of contingency tables" (2017)
    ],
)
def test_paired_difference_matches_published_intervals(table: tuple[int, ...], expected: tuple[float, float]) -> None:
    both, first, second, _ = table
    a = np.repeat([1.0, 1.0, 0.0, 0.0], table)
    b = np.repeat([1.0, 0.0, 1.0, 0.0], table)
    assert (a.sum(), b.sum(), len(a)) == (both + first, both + second, sum(table))
    assert paired_difference(a, b) == pytest.approx(expected, abs=6e-4)
    assert paired_difference(b, a) == pytest.approx((-expected[1], -expected[0]), abs=6e-4)


def test_paired_difference_covers_true_gain_at_95_percent() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        u = rng.random(60)
        a, b = (u < 0.7).astype(float), ((u < 0.4) | (u > 0.9)).astype(float)  # true gain 0.7 - 0.5
        low, high = paired_difference(a, b)
        covered += low <= 0.2 <= high
    assert 0.93 < covered / 1000 < 0.985


def test_pointing_game_splits_hit_between_tied_pixels(tiny: Network, image: np.ndarray) -> None:
    mask = one_hot_map((0, 0), (0, 1), (5, 5)) > 0
    heats = [
        one_hot_map((0, 0)),
        one_hot_map((0, 0), (9, 9)),
        one_hot_map((0, 0), (0, 1), (9, 9), (8, 8)),
        np.zeros((16, 16)),
        one_hot_map((7, 0)),
    ]
    frame = run_game(tiny, image, heats, [mask] * 5)
    assert frame.arrays["hit"].tolist() == pytest.approx([1, 0.5, 0.5, 3 / 256, 0])
    assert frame.scalars["hits"] == pytest.approx(2 + 3 / 256)


def test_pointing_game_ignores_nan(tiny: Network, image: np.ndarray) -> None:
    heat = np.full((16, 16), np.nan)
    heat[3, 3:5] = -2, -1
    frame = run_game(tiny, image, [heat, np.full((16, 16), np.nan)], [one_hot_map((3, 4)) > 0, one_hot_map((3, 4)) > 0])
    assert frame.arrays["hit"].tolist() == pytest.approx([1, 1 / 256])


def test_pointing_game_uses_largest_value_not_magnitude(tiny: Network, image: np.ndarray) -> None:
    frame = run_game(tiny, image, [0.5 * one_hot_map((2, 2)) - 9 * one_hot_map((4, 4))], [one_hot_map((2, 2)) > 0])
    assert frame.scalars["accuracy"] == 1


def test_pointing_game_margin_widens_mask(tiny: Network, image: np.ndarray) -> None:
    mask = one_hot_map((2, 13)) > 0
    for margin in (0, 1, 3):
        pixels = [(2, 13 - margin), (2 + margin, 13 - margin), (2 + margin + 1, 13), (2, 13 - margin - 1)]
        frame = run_game(tiny, image, [one_hot_map(pixel) for pixel in pixels], [mask] * 4, margin=margin)
        assert frame.arrays["hit"].tolist() == [1, 1, 0, 0]
    centers = [run_game(tiny, image, [mask], [mask], margin=margin).scalars["center"] for margin in (4, 5, 6)]
    assert centers == [0, 0.25, 1]


@pytest.mark.parametrize(("side", "middle"), [(16, [(7, 7), (7, 8), (8, 7), (8, 8)]), (15, [(7, 7)])])
def test_pointing_game_center_baseline_uses_middle_pixels(side: int, middle: list[tuple[int, int]]) -> None:
    net = Network(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=side)
    masks = [one_hot_map(pixel, side=side) > 0 for pixel in [*middle, (6, 6), (9, 9)]]
    frame = run_game(net, np.zeros((side, side), np.float32), [one_hot_map((0, 0), side=side)] * len(masks), masks)
    assert frame.arrays["center hit"].tolist() == [1 / len(middle)] * len(middle) + [0, 0]


def test_pointing_game_error_names_invalid_scene_by_index(tiny: Network, image: np.ndarray) -> None:
    valid = (image, 0, one_hot_map((0, 0)) > 0)
    for invalid, error, message in [
        ((image, 0, np.ones((8, 8), bool)), ValueError, "scene 1.*8x8.*16x16"),
        ((image, 0), TypeError, "scene 1.*tuple"),
        (7, TypeError, "scene 1.*int"),
    ]:
        frames = pointing_game(tiny, [valid, invalid])
        assert next(frames).step == 1
        with pytest.raises(error, match=message):
            next(frames)
    with pytest.raises(ValueError, match="(?i)scene"):
        next(pointing_game(tiny, []))
    with pytest.raises(TypeError, match="generator"):
        next(pointing_game(tiny, (scene for scene in [valid])))


def test_pointing_game_propagates_method_error(tiny: Network, image: np.ndarray) -> None:
    def fails_later(net: Network, array: np.ndarray, *, target: int) -> Iterator[Frame]:
        if target == 2:
            raise ArithmeticError("method failed")
        yield from saliency(net, array, target=target)

    run = Run(pointing_game(tiny, [(image, label, one_hot_map((0, 0)) > 0) for label in (1, 2, 3)], method=fails_later))
    with pytest.raises(ArithmeticError, match="method failed"):
        run.run()
    assert run.last.step == 1
    with pytest.raises(ValueError, match="'gradcam'.*grad_cam"):
        next(pointing_game(tiny, [(image, 0, one_hot_map((0, 0)) > 0)], method="gradcam"))


class LazyScenes(Sequence[Scene]):
    """A thousand scenes drawn on access; counts how many are alive at once."""

    def __init__(self) -> None:
        self.drawn: weakref.WeakSet[Scene] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Scene:
        if index >= 1000:
            raise IndexError
        scene = Scene(np.full((16, 16, 3), index / 1000, np.float32), index % 4, one_hot_map((0, 0)) > 0, {})
        self.drawn.add(scene)
        self.most = max(self.most, len(self.drawn))
        return scene


def test_pointing_game_does_not_keep_scenes_in_memory(tiny: Network) -> None:
    scenes = LazyScenes()
    method = lambda _net, _image, target: iter([Frame(1, 1, done=True, heat=one_hot_map((0, target)))])  # noqa: E731
    frame = Run(pointing_game(tiny, scenes, method=method)).run()
    assert (frame.step, frame.scalars["hits"]) == (1000, 250)
    assert scenes.most <= 2


def test_pointing_game_preserves_module_and_global_rng(tiny_module: nn.Module, image: np.ndarray) -> None:
    before, random = [p.clone() for p in tiny_module.parameters()], torch.get_rng_state()
    scenes = [(image, 0, one_hot_map((0, 0)) > 0)] * 2
    frames = pointing_game(Network(tiny_module, size=16), scenes)
    next(frames)
    frames.close()
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_module.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
