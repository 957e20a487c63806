from __future__ import annotations

import hashlib
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core import Network, Run
from convis_widgets.demo import Toyscape
from convis_widgets.techniques import saliency, segmentation

OBJECT, BACKGROUND = (0.8, 0.2, 0.1), (0.1, 0.3, 0.7)


def disk(row: float, column: float, radius: float, side: int = 32) -> np.ndarray:
    i, j = np.mgrid[:side, :side]
    return (i - row) ** 2 + (j - column) ** 2 < radius**2


def two_tone(truth: np.ndarray) -> np.ndarray:
    """A picture of two colors with a little noise: the object's where `truth` is, the background's elsewhere."""
    noise = np.random.default_rng(0).normal(0, 0.02, (*truth.shape, 3))
    return np.clip(np.where(truth[..., None], OBJECT, BACKGROUND) + noise, 0, 1).astype(np.float32)


def with_saliency(saliency: np.ndarray, channels: int = 3) -> Network:
    """A network whose gradient is this map in every color: one weighted sum of the pixels."""
    size = saliency.shape
    linear = nn.Linear(channels * saliency.size, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(saliency).float().flatten().repeat(2, channels))
    return Network(nn.Sequential(nn.Flatten(), linear), size=size, channels=channels)


def bump(row: float, column: float, side: int = 32) -> np.ndarray:
    i, j = np.mgrid[:side, :side]
    return np.exp(-((i - row) ** 2 + (j - column) ** 2) / 72) + 1e-3


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return (mask & truth).sum() / (mask | truth).sum()


TRUTH = disk(18, 14, 9)


def test_an_object_of_one_color_is_cut_out_though_the_saliency_knows_only_a_part_of_it() -> None:
    salient = bump(14, 12)
    frame = Run(segmentation(with_saliency(salient), two_tone(TRUTH), truth=TRUTH)).run()
    assert frame.scalars["iou"] == pytest.approx(iou(frame.arrays["mask"], TRUTH))
    assert frame.scalars["iou"] > 0.98
    best = max(iou(salient > level, TRUTH) for level in salient.flat)
    assert best < 0.9, "no threshold on the map does that"


def test_gray_pictures_are_cut_too() -> None:
    picture = two_tone(TRUTH)[..., :1]
    frame = Run(segmentation(with_saliency(bump(14, 12), 1), picture, truth=TRUTH)).run()
    assert frame.scalars["iou"] > 0.98
    assert frame.arrays["cutout"].shape == (32, 32, 1)


def test_seeds_are_the_highest_and_lowest_ranks_of_the_saliency_map() -> None:
    salient = np.random.default_rng(1).random((20, 20))
    frame = Run(segmentation(with_saliency(salient), two_tone(disk(10, 10, 5, 20)), smooth=0)).run()
    rank = salient.flatten().argsort().argsort().reshape(20, 20)
    assert np.array_equal(frame.arrays["seeds"] == 1, rank >= 380)
    assert np.array_equal(frame.arrays["seeds"] == -1, rank < 120)
    assert frame.arrays["seeds"].dtype == np.int8


def test_blur_takes_the_seeds_from_the_surroundings_and_not_from_lone_pixels() -> None:
    salient = bump(18, 14)
    salient[2, 29] = 2
    net = with_saliency(salient)
    lone = [Run(segmentation(net, two_tone(TRUTH), smooth=smooth)).run().arrays["seeds"][2, 29] for smooth in (0, 0.1)]
    assert lone == [1, -1]


def test_heat_is_the_saliency_map(tiny: Network, picture: np.ndarray) -> None:
    frame = Run(segmentation(tiny, picture, target=1)).run()
    assert np.array_equal(frame.heat, Run(saliency(tiny, picture, target=1)).run().heat)


def test_iterations_one_by_one_end_where_opencv_does_in_one_call() -> None:
    scene = Toyscape(8, seed=4)[7]
    net = Network.demo()
    frames = list(segmentation(net, scene.image, smooth=0, iterations=4, largest=False, seed=3))
    assert [(f.step, f.total) for f in frames] == [(i, 4) for i in range(5)]
    heat = frames[0].heat
    state = np.full(heat.shape, cv2.GC_PR_BGD, np.uint8)
    state[heat < np.quantile(heat, 0.3)] = cv2.GC_BGD
    state[heat > np.quantile(heat, 0.95)] = cv2.GC_FGD
    assert np.array_equal(frames[0].arrays["mask"], state == cv2.GC_FGD)
    cv2.setRNGSeed(3)
    colors = np.round(scene.image * 255).astype(np.uint8)
    cv2.grabCut(colors, state, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    assert np.array_equal(frames[-1].arrays["mask"], np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD)))
    assert any((f.arrays["mask"] != frames[-1].arrays["mask"]).any() for f in frames[:-1])


def test_opencvs_random_numbers_before_the_call_do_not_matter() -> None:
    scene = Toyscape(3, seed=6)[2]

    def masks(before: int) -> list[bytes]:
        cv2.setRNGSeed(before)
        return [frame.arrays["mask"].tobytes() for frame in segmentation(Network.demo(), scene.image)]

    assert masks(1) == masks(2)


def test_the_cutout_is_the_picture_on_white() -> None:
    picture = two_tone(TRUTH)
    arrays = Run(segmentation(with_saliency(bump(14, 12)), picture)).run().arrays
    assert np.array_equal(arrays["cutout"][arrays["mask"]], picture[arrays["mask"]])
    assert (arrays["cutout"][~arrays["mask"]] == 1).all()


def test_only_the_largest_part_is_kept_unless_told_otherwise() -> None:
    large, small = disk(10, 10, 7), disk(25, 25, 3)
    net = with_saliency(bump(10, 10) + bump(25, 25))
    masks = [
        Run(segmentation(net, two_tone(large | small), largest=largest, smooth=0)).run().arrays["mask"]
        for largest in (True, False)
    ]
    assert iou(masks[0], large) > 0.98
    assert iou(masks[1], large | small) > 0.98


def test_figures_of_toyscape_are_found_far_better_than_by_a_box_in_the_middle(demo_net: Network) -> None:
    cut, boxed = [], []
    for scene in Toyscape(30, seed=1):
        last = Run(segmentation(demo_net, scene.image, truth=scene.mask)).run()
        cut.append(last.scalars["iou"])
        side = round(scene.mask.sum() ** 0.5)
        start = (64 - side) // 2
        box = np.zeros((64, 64), bool)
        box[start : start + side, start : start + side] = True
        boxed.append(iou(box, scene.mask))
    assert np.mean(cut) > np.mean(boxed) + 0.3
    assert np.mean(cut) > 0.6


def test_without_opencv_the_call_says_what_to_install_and_the_network_stays_usable(
    tiny: Network, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'pip install "convis-widgets\[segmentation\]"'):
        segmentation(tiny, picture)
    assert Run(saliency(tiny, picture)).run().done


def test_a_map_without_peaks_is_refused_in_words() -> None:
    net = with_saliency(np.ones((16, 16)))
    with pytest.raises(ValueError, match="no pixel's saliency lies above the 0.95 quantile"):
        Run(segmentation(net, np.full((16, 16, 3), 0.5, np.float32))).run()


def test_a_map_that_is_zero_almost_everywhere_works() -> None:
    salient = np.zeros((32, 32))
    salient[18, 14] = 1
    frame = Run(segmentation(with_saliency(salient), two_tone(TRUTH), smooth=0)).run()
    assert frame.arrays["seeds"].sum() == 1
    assert frame.arrays["mask"][18, 14]


def test_a_picture_of_one_color_works() -> None:
    frame = Run(segmentation(with_saliency(bump(14, 12)), np.full((32, 32, 3), 0.4, np.float32))).run()
    assert frame.arrays["mask"].any()


def test_what_cannot_be_is_said(tiny: Network, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"background=0.9 should be below foreground=0.5"):
        segmentation(tiny, picture, foreground=0.5, background=0.9)
    with pytest.raises(ValueError, match="truth is 8x8 and the picture 16x16"):
        Run(segmentation(tiny, picture, truth=np.ones((8, 8), bool))).run()


def test_the_users_model_is_as_it_was(tiny_module: nn.Module, picture: np.ndarray) -> None:
    tiny_module.train()

    def state() -> str:
        tensors = b"".join(tensor.detach().numpy().tobytes() for tensor in tiny_module.state_dict().values())
        return hashlib.sha256(tensors).hexdigest() + str(
            [(m.training, len(m._forward_hooks)) for m in tiny_module.modules()]
        )

    before = state()
    assert Run(segmentation(Network(tiny_module, size=16), picture)).run().done
    assert state() == before
