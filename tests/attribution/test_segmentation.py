from __future__ import annotations

import hashlib
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.demo.toyscape import Toyscape
from convis_widgets.techniques.attribution.saliency import saliency
from convis_widgets.techniques.attribution.segmentation import segmentation

OBJECT, BACKGROUND = (0.8, 0.2, 0.1), (0.1, 0.3, 0.7)


def disk(row: float, column: float, radius: float, side: int = 32) -> np.ndarray:
    i, j = np.mgrid[:side, :side]
    return (i - row) ** 2 + (j - column) ** 2 < radius**2


def two_tone(truth: np.ndarray) -> np.ndarray:
    """A two-color image with a little noise: the object color where `truth` is set, the background color elsewhere."""
    noise = np.random.default_rng(0).normal(0, 0.02, (*truth.shape, 3))
    return np.clip(np.where(truth[..., None], OBJECT, BACKGROUND) + noise, 0, 1).astype(np.float32)


def network_with_saliency(saliency: np.ndarray, channels: int = 3) -> Network:
    """A linear network whose gradient is this map in every color channel."""
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


def test_segmentation_finds_whole_object_from_partial_saliency() -> None:
    salient = bump(14, 12)
    frame = Run(segmentation(network_with_saliency(salient), two_tone(TRUTH), ground_truth=TRUTH)).run()
    assert frame.scalars["iou"] == pytest.approx(iou(frame.arrays["mask"], TRUTH))
    assert frame.scalars["iou"] > 0.98
    best = max(iou(salient > level, TRUTH) for level in salient.flat)
    assert best < 0.9, "no threshold on the map reaches this"


def test_segmentation_works_on_grayscale_images() -> None:
    image = two_tone(TRUTH)[..., :1]
    frame = Run(segmentation(network_with_saliency(bump(14, 12), 1), image, ground_truth=TRUTH)).run()
    assert frame.scalars["iou"] > 0.98
    assert frame.arrays["cutout"].shape == (32, 32, 1)


def test_segmentation_seeds_are_highest_and_lowest_saliency_ranks() -> None:
    salient = np.random.default_rng(1).random((20, 20))
    frame = Run(segmentation(network_with_saliency(salient), two_tone(disk(10, 10, 5, 20)), blur=0)).run()
    rank = salient.flatten().argsort().argsort().reshape(20, 20)
    assert np.array_equal(frame.arrays["seeds"] == 1, rank >= 380)
    assert np.array_equal(frame.arrays["seeds"] == -1, rank < 120)
    assert frame.arrays["seeds"].dtype == np.int8


def test_segmentation_smooth_ignores_isolated_pixels() -> None:
    salient = bump(18, 14)
    salient[2, 29] = 2
    net = network_with_saliency(salient)
    values = [Run(segmentation(net, two_tone(TRUTH), blur=smooth)).run().arrays["seeds"][2, 29] for smooth in (0, 0.1)]
    assert values == [1, -1]


def test_segmentation_heat_is_saliency_map(tiny: Network, image: np.ndarray) -> None:
    frame = Run(segmentation(tiny, image, target=1)).run()
    assert np.array_equal(frame.heat, Run(saliency(tiny, image, target=1)).run().heat)


def test_segmentation_iterations_match_single_opencv_call() -> None:
    scene = Toyscape(8, seed=4)[7]
    net = Network.demo()
    frames = list(segmentation(net, scene.image, blur=0, iterations=4, keep_largest=False, seed=3))
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


def test_segmentation_does_not_depend_on_opencv_rng_state() -> None:
    scene = Toyscape(3, seed=6)[2]

    def masks(before: int) -> list[bytes]:
        cv2.setRNGSeed(before)
        return [frame.arrays["mask"].tobytes() for frame in segmentation(Network.demo(), scene.image)]

    assert masks(1) == masks(2)


def test_segmentation_cutout_is_image_on_white() -> None:
    image = two_tone(TRUTH)
    arrays = Run(segmentation(network_with_saliency(bump(14, 12)), image)).run().arrays
    assert np.array_equal(arrays["cutout"][arrays["mask"]], image[arrays["mask"]])
    assert (arrays["cutout"][~arrays["mask"]] == 1).all()


def test_segmentation_largest_keeps_only_largest_component() -> None:
    large, small = disk(10, 10, 7), disk(25, 25, 3)
    net = network_with_saliency(bump(10, 10) + bump(25, 25))
    masks = [
        Run(segmentation(net, two_tone(large | small), keep_largest=largest, blur=0)).run().arrays["mask"]
        for largest in (True, False)
    ]
    assert iou(masks[0], large) > 0.98
    assert iou(masks[1], large | small) > 0.98


def test_segmentation_beats_center_box_on_toyscape(demo_net: Network) -> None:
    ious, box_ious = [], []
    for scene in Toyscape(30, seed=1):
        last = Run(segmentation(demo_net, scene.image, ground_truth=scene.mask)).run()
        ious.append(last.scalars["iou"])
        side = round(scene.mask.sum() ** 0.5)
        start = (64 - side) // 2
        box = np.zeros((64, 64), bool)
        box[start : start + side, start : start + side] = True
        box_ious.append(iou(box, scene.mask))
    assert np.mean(ious) > np.mean(box_ious) + 0.3
    assert np.mean(ious) > 0.6


def test_segmentation_without_opencv_names_package_to_install(
    tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install .*convis-widgets\[segmentation\]"):
        segmentation(tiny, image)
    assert Run(saliency(tiny, image)).run().done


def test_segmentation_rejects_constant_map() -> None:
    net = network_with_saliency(np.ones((16, 16)))
    with pytest.raises(ValueError, match=r"0\.95"):
        Run(segmentation(net, np.full((16, 16, 3), 0.5, np.float32))).run()


def test_segmentation_accepts_mostly_zero_map() -> None:
    salient = np.zeros((32, 32))
    salient[18, 14] = 1
    frame = Run(segmentation(network_with_saliency(salient), two_tone(TRUTH), blur=0)).run()
    assert frame.arrays["seeds"].sum() == 1
    assert frame.arrays["mask"][18, 14]


def test_segmentation_accepts_single_color_image() -> None:
    frame = Run(segmentation(network_with_saliency(bump(14, 12)), np.full((32, 32, 3), 0.4, np.float32))).run()
    assert frame.arrays["mask"].any()


def test_segmentation_rejects_invalid_quantiles_and_truth_shape(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"background\D*0\.9\b.*foreground\D*0\.5\b"):
        segmentation(tiny, image, foreground=0.5, background=0.9)
    with pytest.raises(ValueError, match="truth.*8x8.*16x16"):
        Run(segmentation(tiny, image, ground_truth=np.ones((8, 8), bool))).run()


def test_segmentation_leaves_user_module_unchanged(tiny_module: nn.Module, image: np.ndarray) -> None:
    tiny_module.train()

    def state() -> str:
        tensors = b"".join(tensor.detach().numpy().tobytes() for tensor in tiny_module.state_dict().values())
        return hashlib.sha256(tensors).hexdigest() + str(
            [(m.training, len(m._forward_hooks)) for m in tiny_module.modules()]
        )

    before = state()
    assert Run(segmentation(Network(tiny_module, size=16), image)).run().done
    assert state() == before
