"""Attribution as a whole: against Captum on well-known networks, and on networks made so that the right map is known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import calibrate
from torch import nn

from convis_widgets.core import Frame, Network, Run
from convis_widgets.techniques import (
    deconvnet,
    grad_cam,
    guided_backprop,
    integrated_gradients,
    occlusion,
    saliency,
    smooth_grad,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# -- Captum ------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A network with ReLU modules only, and a picture: in [0, 1] for us, normalized for Captum."""

    module: nn.Module
    net: Network
    batch: torch.Tensor
    target: int
    layer: str

    @property
    def normalized(self) -> torch.Tensor:
        return torchvision.transforms.functional.normalize(self.batch, MEAN, STD).requires_grad_()

    def gradient(self, method: Callable[..., Any], **words: Any) -> np.ndarray:
        """What a method of Captum finds, by the chain rule with respect to the picture in [0, 1]."""
        found = method(self.module).attribute(self.normalized, target=self.target, **words)
        return found.detach()[0].permute(1, 2, 0).numpy() / np.float32(STD)


NETWORKS = {"vgg11": (64, "features.18"), "resnet18": (64, "layer3"), "alexnet": (128, "features.10")}
NETWORKS |= {"squeezenet1_1": (96, "features.9")}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    size, layer = NETWORKS[request.param]
    torch.manual_seed(0)
    module = torchvision.models.get_model(request.param, weights=None, num_classes=20)
    calibrate(nn.Sequential(torchvision.transforms.Normalize(MEAN, STD), module), size)
    batch = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=size, mode="bicubic").clamp(0, 1)
    net = Network(module, size=size, mean=MEAN, std=STD)
    with torch.no_grad():
        target = int(net(batch).argmax())
    return Case(module, net, batch, target, layer)


def by_gradient(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import Saliency

    return last(saliency(case.net, case.batch, target=case.target)).arrays["gradient"], case.gradient(Saliency, abs=False)


def by_guided_backprop(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import GuidedBackprop

    ours = last(guided_backprop(case.net, case.batch, target=case.target))
    return ours.arrays["gradient"], case.gradient(GuidedBackprop)


def by_deconvnet(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import Deconvolution

    return last(deconvnet(case.net, case.batch, target=case.target)).arrays["gradient"], case.gradient(Deconvolution)


def by_integrated_gradients(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The mean pixel is zero after normalization, and the factor of the chain rule cancels against the difference."""
    from captum.attr import IntegratedGradients

    ours = last(integrated_gradients(case.net, case.batch, target=case.target, steps=10, baseline="mean"))
    theirs = IntegratedGradients(case.module).attribute(
        case.normalized, baselines=0, target=case.target, n_steps=10, method="riemann_middle"
    )
    return ours.arrays["attribution"], theirs.detach()[0].permute(1, 2, 0).numpy()


def by_occlusion(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Captum gives a pixel the mean over the windows that cover it."""
    from captum.attr import Occlusion

    patch = case.batch.shape[2] // 4
    stride = patch // 2
    ours = last(occlusion(case.net, case.batch, target=case.target, patch=patch, stride=stride, fill="mean", average=True))
    with torch.no_grad():
        theirs = Occlusion(lambda batch: case.module(batch).softmax(1)).attribute(
            case.normalized, (3, patch, patch), (3, stride, stride), 0, target=case.target, perturbations_per_eval=7
        )
    assert torch.equal(theirs[0, 0], theirs[0, 2])
    return ours.heat, theirs[0, 0].numpy()


def by_grad_cam(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import LayerAttribution, LayerGradCam

    ours = last(grad_cam(case.net, case.batch, target=case.target, layer=case.layer))
    theirs = LayerGradCam(case.module, case.module.get_submodule(case.layer))
    coarse = theirs.attribute(case.normalized, target=case.target, relu_attributions=True)
    return ours.heat, LayerAttribution.interpolate(coarse, case.batch.shape[2:], "bilinear")[0, 0].detach().numpy()


def last(frames: Iterator[Frame]) -> Frame:
    frame = Run(frames).run()
    assert frame is not None
    assert frame.done
    return frame


METHODS = {
    "gradient": by_gradient,
    "guided backpropagation": by_guided_backprop,
    "deconvnet": by_deconvnet,
    "integrated gradients": by_integrated_gradients,
    "occlusion": by_occlusion,
    "grad-cam": by_grad_cam,
}


@pytest.mark.parametrize("method", METHODS)
def test_captum_agrees(method: str, case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Captum tells of its hooks
        ours, theirs = METHODS[method](case)
    largest = np.abs(theirs).max()
    assert largest > 1e-2, "comparing what is next to nothing proves nothing"
    assert np.abs(ours - theirs).max() <= 1e-4 * largest


# -- four pictures and heads that see one each -------------------------------------------------------------------------

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
BACKPROPAGATED = {
    "saliency": saliency,
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet,
    "smooth_grad": smooth_grad,
    "integrated_gradients": integrated_gradients,
}


class Apart(nn.Module):
    """The maps (C, h, w) of four pictures as one set (4C, 2h, 2w): each in its quadrant, in channels of its own."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        h, w = maps.shape[2:]
        pads = [(j * w, w - j * w, i * h, h - i * h) for i, j in CORNERS]
        return torch.cat([nn.functional.pad(part, pad) for part, pad in zip(maps.chunk(4), pads, strict=True)], 1)


class Grid(nn.Module):
    """A grid of two by two pictures, 16 x 16 each, that meet nowhere: two classes for each, by a head that sees no other.

    This is DiFull of S. Rao, M. Boehle, B. Schiele, "Towards better understanding attribution methods", 2022,
    arXiv:2205.10435. Sigmoids at the end keep the classes' probabilities apart, too.
    """

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.backbone = nn.Sequential(*first, nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.apart = Apart()
        self.heads = nn.ModuleList(nn.Linear(12, 2) for _ in CORNERS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.apart(self.backbone(torch.cat([x[:, :, quadrant(i, 16), quadrant(j, 16)] for i, j in CORNERS])))
        parts = [maps[:, 12 * k : 12 * k + 12, quadrant(i, 8), quadrant(j, 8)] for k, (i, j) in enumerate(CORNERS)]
        return torch.cat([head(part.mean((2, 3))) for head, part in zip(self.heads, parts, strict=True)], 1).sigmoid()


def quadrant(half: int, side: int) -> slice:
    return slice(half * side, half * side + side)


@pytest.fixture(scope="module")
def grid() -> Network:
    torch.manual_seed(0)
    return Network(calibrate(Grid(), 32), size=32)


@pytest.fixture(scope="module")
def four_pictures() -> np.ndarray:
    return np.random.default_rng(1).random((32, 32, 3)).astype(np.float32)


def split(heat: np.ndarray, corner: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The part of a map in a quadrant, and the map with that quadrant set to zero."""
    here = tuple(quadrant(half, len(heat) // 2) for half in corner)
    outside = heat.copy()
    outside[here] = 0
    return heat[here], outside


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("method", BACKPROPAGATED)
def test_nothing_falls_on_a_picture_that_the_class_cannot_see(
    method: str, which: int, grid: Network, four_pictures: np.ndarray
) -> None:
    for target in (2 * which, 2 * which + 1):
        inside, outside = split(last(BACKPROPAGATED[method](grid, four_pictures, target=target)).heat, CORNERS[which])
        assert np.abs(inside).max() > 1e-3
        assert not outside.any()


@pytest.mark.parametrize("which", range(4))
def test_grad_cam_keeps_to_the_picture_where_the_maps_keep_them_apart(
    which: int, grid: Network, four_pictures: np.ndarray
) -> None:
    frames = [last(grad_cam(grid, four_pictures, target=target)) for target in (2 * which, 2 * which + 1)]
    for frame in frames:
        assert frame.arrays["coarse"].shape == (16, 16)
        assert not split(frame.arrays["coarse"], CORNERS[which])[1].any()
        row, column = (quadrant(half, 16) for half in CORNERS[which])
        near = np.zeros((32, 32), bool)  # enlarging reaches over the border by half a cell
        near[max(0, row.start - 1) : row.stop + 1, max(0, column.start - 1) : column.stop + 1] = True
        assert not frame.heat[~near].any()
    assert max(split(frame.arrays["coarse"], CORNERS[which])[0].max() for frame in frames) > 1e-3


def test_grad_cam_refuses_a_layer_that_runs_on_the_four_as_on_a_batch(grid: Network, four_pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"backbone\.4 puts out 4 sets of maps where 1 went in; choose another layer"):
        last(grad_cam(grid, four_pictures, layer="backbone.4"))


@pytest.mark.parametrize("which", range(4))
def test_hiding_a_picture_that_the_class_cannot_see_changes_nothing(
    which: int, grid: Network, four_pictures: np.ndarray
) -> None:
    frame = last(occlusion(grid, four_pictures, target=2 * which, patch=8, stride=8, average=True))
    inside, outside = split(frame.heat, CORNERS[which])
    assert np.abs(inside).max() > 1e-3
    assert np.abs(outside).max() < 1e-6


# -- a network set by hand ---------------------------------------------------------------------------------------------

TOP, BOTTOM = range(5), range(5, 8)  # rows
PAIRS = ((1, 2), (2, 6), (4, 0), (6, 4))  # row and column of the red one: three above, one below


@pytest.fixture
def counting() -> Network:
    """Red pixels with a blue one at their right: those in the rows above less those in the rows below."""
    conv, count = nn.Conv2d(3, 1, (1, 2)), nn.Linear(8 * 9, 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = conv.weight[0, 2, 0, 1] = 2
        conv.bias.fill_(-3)
        count.weight.copy_(torch.tensor([1.0 if row in TOP else -1.0 for row in range(8) for _ in range(9)]))
    return Network(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), count), size=(8, 10), mean=0, std=1)


@pytest.fixture
def colored() -> np.ndarray:
    """Four pairs; a red and a blue pixel alone; and a pair the wrong way round."""
    image = np.zeros((8, 10, 3), np.float32)
    for row, column in PAIRS:
        image[row, column, 0] = image[row, column + 1, 2] = 1
    image[0, 5, 0] = image[3, 8, 2] = image[5, 1, 2] = image[5, 2, 0] = 1
    return image


def count(image: np.ndarray) -> int:
    """The network's score, counted."""
    pairs = [(y, x) for y in range(8) for x in range(9) if image[y, x, 0] == 1 and image[y, x + 1, 2] == 1]
    return sum(1 if row in TOP else -1 for row, _ in pairs)


def on_pairs(value: Callable[[int], float]) -> np.ndarray:
    """A map (H, W, C): at each pair's red and blue pixel in that color a value that depends on its row."""
    heat = np.zeros((8, 10, 3))
    for row, column in PAIRS:
        heat[row, column, 0] = heat[row, column + 1, 2] = value(row)
    return heat


def probability(score: float) -> float:
    return 1 / (1 + np.exp(-score))


def test_the_network_counts(counting: Network, colored: np.ndarray) -> None:
    assert count(colored) == 2
    assert counting.probabilities_of(colored)[0] == pytest.approx(probability(2))


def test_the_gradient_is_the_detector_at_every_pair(counting: Network, colored: np.ndarray) -> None:
    expected = on_pairs(lambda row: 2 if row in TOP else -2)
    for frame in (last(saliency(counting, colored)), last(smooth_grad(counting, colored, noise=0.02, samples=5))):
        assert np.allclose(frame.arrays["gradient"], expected)
        assert np.allclose(frame.heat, np.abs(expected).max(2))
    signed = last(saliency(counting, colored, show="signed"))
    assert np.allclose(signed.heat, expected.sum(2))
    dimmed = last(saliency(counting, 0.8 * colored, show="times input"))
    assert np.allclose(dimmed.heat, 0.8 * expected.sum(2))
    assert signed.scalars["value"] == pytest.approx(2)


def test_one_unit_is_the_detector_at_its_place(counting: Network, colored: np.ndarray) -> None:
    expected = np.zeros((8, 10, 3))
    expected[6, 4, 0] = expected[6, 5, 2] = 2
    for method in (saliency, guided_backprop, deconvnet):
        frame = last(method(counting, colored, of=("1", 0, (6, 4))))
        assert np.allclose(frame.arrays["gradient"], expected)
        assert tuple(frame.arrays["box"]) == (6, 4, 7, 6)


def test_guided_backpropagation_leaves_out_what_speaks_against(counting: Network, colored: np.ndarray) -> None:
    expected = on_pairs(lambda row: 2 if row in TOP else 0)
    assert np.allclose(last(guided_backprop(counting, colored)).arrays["gradient"], expected)


def test_the_deconvnet_does_not_ask_what_is_in_the_picture(counting: Network, colored: np.ndarray) -> None:
    """Without a max-pooling there are no switches, and it gives back the detector everywhere above."""
    expected = np.zeros((8, 10, 3))
    expected[TOP, :9, 0] = expected[TOP, 1:, 2] = 2
    assert np.allclose(last(deconvnet(counting, colored)).arrays["gradient"], expected)


def test_integrated_gradients_gives_each_pixel_of_a_pair_half(counting: Network, colored: np.ndarray) -> None:
    """From black a detector opens at three quarters of the way, and then rises by 4: half by red, half by blue."""
    frame = last(integrated_gradients(counting, colored, steps=8, baseline="black"))
    expected = on_pairs(lambda row: 0.5 if row in TOP else -0.5)
    assert np.allclose(frame.arrays["attribution"], expected)
    assert np.allclose(frame.heat, expected.sum(2))
    assert frame.scalars["rise"] == pytest.approx(2)
    assert frame.scalars["completeness error"] == pytest.approx(0, abs=1e-6)


def test_grad_cam_does_not_tell_the_rows_apart(counting: Network, colored: np.ndarray) -> None:
    """Its one weight is the mean over 45 places that count for the class and 27 that count against it."""
    frame = last(grad_cam(counting, colored, layer="1"))
    assert np.allclose(frame.arrays["weights"], (45 - 27) / 72)
    expected = np.zeros((8, 9))
    for pair in PAIRS:
        expected[pair] = 0.25
    assert np.allclose(frame.arrays["coarse"], expected)


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_occlusion_is_the_count_of_what_is_left(patch: int, counting: Network, colored: np.ndarray) -> None:
    frame = last(occlusion(counting, colored, patch=patch, stride=1, fill="black"))
    assert frame.scalars["probability"] == pytest.approx(probability(2))
    expected = np.zeros((9 - patch, 11 - patch))
    for top, left in np.ndindex(expected.shape):
        hidden = colored.copy()
        hidden[top : top + patch, left : left + patch] = 0
        expected[top, left] = probability(count(hidden))
    assert np.allclose(frame.arrays["probability"], expected, atol=1e-6)
    assert {round(float(p), 5) for p in expected.flat} >= {round(probability(score), 5) for score in (1, 2, 3)}
    if patch == 1:
        assert np.allclose(frame.heat, probability(2) - expected, atol=1e-6)
