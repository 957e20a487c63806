"""All attribution techniques: against Captum on common networks, and on networks whose correct map is known."""

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

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.deconvnet import deconvnet
from convis_widgets.techniques.attribution.grad_cam import grad_cam
from convis_widgets.techniques.attribution.guided_backprop import guided_backprop
from convis_widgets.techniques.attribution.integrated_gradients import integrated_gradients
from convis_widgets.techniques.attribution.occlusion import occlusion
from convis_widgets.techniques.attribution.saliency import saliency
from convis_widgets.techniques.attribution.smooth_grad import smooth_grad

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# -- Captum ------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A network with ReLU modules only, and an image: in [0, 1] for our methods, normalized for Captum."""

    module: nn.Module
    net: Network
    batch: torch.Tensor
    target: int
    layer: str

    @property
    def normalized(self) -> torch.Tensor:
        return torchvision.transforms.functional.normalize(self.batch, MEAN, STD).requires_grad_()

    def gradient(self, method: Callable[..., Any], **kwargs: Any) -> np.ndarray:
        """Attribution by a Captum method, converted by the chain rule to the image in [0, 1]."""
        attribution = method(self.module).attribute(self.normalized, target=self.target, **kwargs)
        return attribution.detach()[0].permute(1, 2, 0).numpy() / np.float32(STD)


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


def compare_saliency(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import Saliency

    ours = final_frame(saliency(case.net, case.batch, target=case.target))
    return ours.arrays["gradient"], case.gradient(Saliency, abs=False)


def compare_guided_backprop(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import GuidedBackprop

    ours = final_frame(guided_backprop(case.net, case.batch, target=case.target))
    return ours.arrays["gradient"], case.gradient(GuidedBackprop)


def compare_deconvnet(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import Deconvolution

    return final_frame(deconvnet(case.net, case.batch, target=case.target)).arrays["gradient"], case.gradient(Deconvolution)


def compare_integrated_gradients(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The mean pixel is zero after normalization, and the chain-rule factor cancels with the input difference."""
    from captum.attr import IntegratedGradients

    ours = final_frame(integrated_gradients(case.net, case.batch, target=case.target, steps=10, baseline="mean"))
    theirs = IntegratedGradients(case.module).attribute(
        case.normalized, baselines=0, target=case.target, n_steps=10, method="riemann_middle"
    )
    return ours.arrays["attribution"], theirs.detach()[0].permute(1, 2, 0).numpy()


def compare_occlusion(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Captum averages over all windows that cover a pixel."""
    from captum.attr import Occlusion

    patch_size = case.batch.shape[2] // 4
    stride = patch_size // 2
    ours = final_frame(
        occlusion(
            case.net, case.batch, target=case.target, patch_size=patch_size, stride=stride, baseline="mean", average=True
        )
    )
    with torch.no_grad():
        theirs = Occlusion(lambda batch: case.module(batch).softmax(1)).attribute(
            case.normalized,
            (3, patch_size, patch_size),
            (3, stride, stride),
            0,
            target=case.target,
            perturbations_per_eval=7,
        )
    assert torch.equal(theirs[0, 0], theirs[0, 2])
    return ours.heat, theirs[0, 0].numpy()


def compare_grad_cam(case: Case) -> tuple[np.ndarray, np.ndarray]:
    from captum.attr import LayerAttribution, LayerGradCam

    ours = final_frame(grad_cam(case.net, case.batch, target=case.target, layer=case.layer))
    theirs = LayerGradCam(case.module, case.module.get_submodule(case.layer))
    coarse = theirs.attribute(case.normalized, target=case.target, relu_attributions=True)
    return ours.heat, LayerAttribution.interpolate(coarse, case.batch.shape[2:], "bilinear")[0, 0].detach().numpy()


def final_frame(frames: Iterator[Frame]) -> Frame:
    frame = Run(frames).run()
    assert frame is not None
    assert frame.done
    return frame


METHODS = {
    "gradient": compare_saliency,
    "guided backpropagation": compare_guided_backprop,
    "deconvnet": compare_deconvnet,
    "integrated gradients": compare_integrated_gradients,
    "occlusion": compare_occlusion,
    "grad-cam": compare_grad_cam,
}


@pytest.mark.parametrize("method", METHODS)
def test_attribution_matches_captum(method: str, case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Captum warns about its hooks
        ours, theirs = METHODS[method](case)
    largest = np.abs(theirs).max()
    assert largest > 1e-2, "attributions too small for a meaningful comparison"
    assert np.abs(ours - theirs).max() <= 1e-4 * largest


# -- a 2 x 2 grid of images, each with its own classifier -------------------------------------------------------------

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
BACKPROPAGATED = {
    "saliency": saliency,
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet,
    "smooth_grad": smooth_grad,
    "integrated_gradients": integrated_gradients,
}


class ToQuadrants(nn.Module):
    """Activations (C, h, w) of four images as one tensor (4C, 2h, 2w): each in its own quadrant and channels."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        h, w = maps.shape[2:]
        pads = [(j * w, w - j * w, i * h, h - i * h) for i, j in CORNERS]
        return torch.cat([nn.functional.pad(part, pad) for part, pad in zip(maps.chunk(4), pads, strict=True)], 1)


class DiFullNet(nn.Module):
    """A 2 x 2 grid of 16 x 16 images processed independently: two classes per image, by a head that sees only that image.

    This is DiFull of S. Rao, M. Boehle, B. Schiele, "Towards better understanding attribution methods", 2022,
    arXiv:2205.10435. Final sigmoids keep the class probabilities independent, too.
    """

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.backbone = nn.Sequential(*first, nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.to_quadrants = ToQuadrants()
        self.heads = nn.ModuleList(nn.Linear(12, 2) for _ in CORNERS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.to_quadrants(self.backbone(torch.cat([x[:, :, quadrant(i, 16), quadrant(j, 16)] for i, j in CORNERS])))
        parts = [maps[:, 12 * k : 12 * k + 12, quadrant(i, 8), quadrant(j, 8)] for k, (i, j) in enumerate(CORNERS)]
        return torch.cat([head(part.mean((2, 3))) for head, part in zip(self.heads, parts, strict=True)], 1).sigmoid()


def quadrant(half: int, side: int) -> slice:
    return slice(half * side, half * side + side)


@pytest.fixture(scope="module")
def difull() -> Network:
    torch.manual_seed(0)
    return Network(calibrate(DiFullNet(), 32), size=32)


@pytest.fixture(scope="module")
def four_images() -> np.ndarray:
    return np.random.default_rng(1).random((32, 32, 3)).astype(np.float32)


def split(heat: np.ndarray, corner: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A map within a quadrant, and the map with that quadrant set to zero."""
    inside = tuple(quadrant(half, len(heat) // 2) for half in corner)
    outside = heat.copy()
    outside[inside] = 0
    return heat[inside], outside


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("method", BACKPROPAGATED)
def test_attribution_is_zero_outside_the_classifiers_quadrant(
    method: str, which: int, difull: Network, four_images: np.ndarray
) -> None:
    for target in (2 * which, 2 * which + 1):
        inside, outside = split(final_frame(BACKPROPAGATED[method](difull, four_images, target=target)).heat, CORNERS[which])
        assert np.abs(inside).max() > 1e-3
        assert not outside.any()


@pytest.mark.parametrize("which", range(4))
def test_grad_cam_stays_within_quadrant_at_default_layer(which: int, difull: Network, four_images: np.ndarray) -> None:
    frames = [final_frame(grad_cam(difull, four_images, target=target)) for target in (2 * which, 2 * which + 1)]
    for frame in frames:
        assert frame.arrays["coarse"].shape == (16, 16)
        assert not split(frame.arrays["coarse"], CORNERS[which])[1].any()
        row, column = (quadrant(half, 16) for half in CORNERS[which])
        near = np.zeros((32, 32), bool)  # upsampling crosses the border by half a cell
        near[max(0, row.start - 1) : row.stop + 1, max(0, column.start - 1) : column.stop + 1] = True
        assert not frame.heat[~near].any()
    assert max(split(frame.arrays["coarse"], CORNERS[which])[0].max() for frame in frames) > 1e-3


def test_grad_cam_rejects_layer_that_changes_batch_size(difull: Network, four_images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"backbone\.4\b.*\b4\b.*\b1\b"):
        final_frame(grad_cam(difull, four_images, layer="backbone.4"))


@pytest.mark.parametrize("which", range(4))
def test_occlusion_is_zero_outside_the_classifiers_quadrant(which: int, difull: Network, four_images: np.ndarray) -> None:
    frame = final_frame(occlusion(difull, four_images, target=2 * which, patch_size=8, stride=8, average=True))
    inside, outside = split(frame.heat, CORNERS[which])
    assert np.abs(inside).max() > 1e-3
    assert np.abs(outside).max() < 1e-6


# -- a network with hand-set weights -----------------------------------------------------------------------------------

TOP, BOTTOM = range(5), range(5, 8)  # rows
PAIRS = ((1, 2), (2, 6), (4, 0), (6, 4))  # row and column of the red pixel: three in TOP, one in BOTTOM


@pytest.fixture
def pair_counter() -> Network:
    """Counts red pixels with a blue pixel to their right: those in the TOP rows minus those in the BOTTOM rows."""
    conv, count = nn.Conv2d(3, 1, (1, 2)), nn.Linear(8 * 9, 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = conv.weight[0, 2, 0, 1] = 2
        conv.bias.fill_(-3)
        count.weight.copy_(torch.tensor([1.0 if row in TOP else -1.0 for row in range(8) for _ in range(9)]))
    return Network(
        nn.Sequential(conv, nn.ReLU(), nn.Flatten(), count), size=(8, 10), mean=0, std=1, output_kind="independent logits"
    )


@pytest.fixture
def pairs_image() -> np.ndarray:
    """Four pairs, a single red and a single blue pixel, and a reversed pair."""
    image = np.zeros((8, 10, 3), np.float32)
    for row, column in PAIRS:
        image[row, column, 0] = image[row, column + 1, 2] = 1
    image[0, 5, 0] = image[3, 8, 2] = image[5, 1, 2] = image[5, 2, 0] = 1
    return image


def count(image: np.ndarray) -> int:
    """The score that the network should give."""
    pairs = [(y, x) for y in range(8) for x in range(9) if image[y, x, 0] == 1 and image[y, x + 1, 2] == 1]
    return sum(1 if row in TOP else -1 for row, _ in pairs)


def map_on_pairs(value: Callable[[int], float]) -> np.ndarray:
    """A map (H, W, C) with a value that depends on the row, at each pair's red and blue pixel in that color channel."""
    heat = np.zeros((8, 10, 3))
    for row, column in PAIRS:
        heat[row, column, 0] = heat[row, column + 1, 2] = value(row)
    return heat


def probability(score: float) -> float:
    return 1 / (1 + np.exp(-score))


def test_pair_counting_network_scores_expected_count(pair_counter: Network, pairs_image: np.ndarray) -> None:
    assert count(pairs_image) == 2
    assert pair_counter.predict_proba(pairs_image)[0] == pytest.approx(probability(2))


def test_gradient_equals_detector_kernel_at_every_pair(pair_counter: Network, pairs_image: np.ndarray) -> None:
    expected = map_on_pairs(lambda row: 2 if row in TOP else -2)
    for frame in (
        final_frame(saliency(pair_counter, pairs_image)),
        final_frame(smooth_grad(pair_counter, pairs_image, noise_level=0.02, samples=5)),
    ):
        assert np.allclose(frame.arrays["gradient"], expected)
        assert np.allclose(frame.heat, np.abs(expected).max(2))
    signed = final_frame(saliency(pair_counter, pairs_image, reduction="signed"))
    assert np.allclose(signed.heat, expected.sum(2))
    darkened = final_frame(saliency(pair_counter, 0.8 * pairs_image, reduction="times input"))
    assert np.allclose(darkened.heat, 0.8 * expected.sum(2))
    assert signed.scalars["value"] == pytest.approx(2)


def test_unit_gradient_equals_detector_kernel_at_its_position(pair_counter: Network, pairs_image: np.ndarray) -> None:
    expected = np.zeros((8, 10, 3))
    expected[6, 4, 0] = expected[6, 5, 2] = 2
    for method in (saliency, guided_backprop, deconvnet):
        frame = final_frame(method(pair_counter, pairs_image, unit=("1", 0, (6, 4))))
        assert np.allclose(frame.arrays["gradient"], expected)
        assert tuple(frame.arrays["box"]) == (6, 4, 7, 6)


def test_guided_backprop_drops_negative_evidence(pair_counter: Network, pairs_image: np.ndarray) -> None:
    expected = map_on_pairs(lambda row: 2 if row in TOP else 0)
    assert np.allclose(final_frame(guided_backprop(pair_counter, pairs_image)).arrays["gradient"], expected)


def test_deconvnet_without_max_pooling_ignores_the_image(pair_counter: Network, pairs_image: np.ndarray) -> None:
    """Without max pooling there are no switches, so the detector's kernel appears everywhere in the TOP rows."""
    expected = np.zeros((8, 10, 3))
    expected[TOP, :9, 0] = expected[TOP, 1:, 2] = 2
    assert np.allclose(final_frame(deconvnet(pair_counter, pairs_image)).arrays["gradient"], expected)


def test_integrated_gradients_splits_each_pair_equally(pair_counter: Network, pairs_image: np.ndarray) -> None:
    """Starting from black, a detector activates at 3/4 of the path and then rises by 4: half from red, half from blue."""
    frame = final_frame(integrated_gradients(pair_counter, pairs_image, steps=8, baseline="black"))
    expected = map_on_pairs(lambda row: 0.5 if row in TOP else -0.5)
    assert np.allclose(frame.arrays["attribution"], expected)
    assert np.allclose(frame.heat, expected.sum(2))
    assert frame.scalars["rise"] == pytest.approx(2)
    assert frame.scalars["completeness error"] == pytest.approx(0, abs=1e-6)


def test_grad_cam_averages_weights_over_all_rows(pair_counter: Network, pairs_image: np.ndarray) -> None:
    """The single channel weight is the mean over 45 positions that raise the score and 27 that lower it."""
    frame = final_frame(grad_cam(pair_counter, pairs_image, layer="1"))
    assert np.allclose(frame.arrays["weights"], (45 - 27) / 72)
    expected = np.zeros((8, 9))
    for pair in PAIRS:
        expected[pair] = 0.25
    assert np.allclose(frame.arrays["coarse"], expected)


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_occlusion_matches_probability_of_remaining_pairs(
    patch_size: int, pair_counter: Network, pairs_image: np.ndarray
) -> None:
    frame = final_frame(occlusion(pair_counter, pairs_image, patch_size=patch_size, stride=1, baseline="black"))
    assert frame.scalars["probability"] == pytest.approx(probability(2))
    expected = np.zeros((9 - patch_size, 11 - patch_size))
    for top, left in np.ndindex(expected.shape):
        occluded = pairs_image.copy()
        occluded[top : top + patch_size, left : left + patch_size] = 0
        expected[top, left] = probability(count(occluded))
    assert np.allclose(frame.arrays["probability"], expected, atol=1e-6)
    assert {round(float(p), 5) for p in expected.flat} >= {round(probability(score), 5) for score in (1, 2, 3)}
    if patch_size == 1:
        assert np.allclose(frame.heat, probability(2) - expected, atol=1e-6)
