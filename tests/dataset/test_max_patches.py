from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from widget_helpers import written

from convis_widgets import demo
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.deconvnet import deconvnet
from convis_widgets.techniques.attribution.guided_backprop import guided_backprop
from convis_widgets.techniques.dataset.max_patches import max_patches


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.random((16, 16, 3)).astype(np.float32) for _ in range(12)]


@pytest.fixture
def scan(tiny: Network, images: list[np.ndarray], tmp_path: Path) -> Scan:
    return Scan(tiny, images, cache=tmp_path)


def reference_max_positions(
    net: Network, images: list[np.ndarray], layer: str, channel: int
) -> list[tuple[float, int, int, int]]:
    """Reference: the maximum position of each image, one image at a time."""
    maxima = []
    for i, image in enumerate(images):
        with torch.no_grad(), trace(net, [layer]) as acts:
            net(net.batch(image))
        values = acts[layer][0, channel]
        row, column = divmod(int(values.argmax()), values.shape[1])
        maxima.append((float(values.max()), i, row, column))
    return sorted(maxima, key=lambda item: -item[0])


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_max_patches_matches_reference(layer: str, tiny: Network, scan: Scan, images: list[np.ndarray]) -> None:
    last = Run(max_patches(tiny, scan, unit=(layer, 2), k=5)).run().arrays
    expected = reference_max_positions(tiny, images, layer, 2)[:5]
    assert np.allclose(last["values"], [value for value, *_ in expected], atol=1e-5)
    assert last["images"].tolist() == [image for _, image, _, _ in expected]
    assert last["positions"].tolist() == [[row, col] for *_, row, col in expected]
    for patch, box, (_, image, row, col) in zip(last["patches"], last["boxes"], expected, strict=True):
        assert tuple(box) == tiny.layers[layer].box((row, col))
        top, left, bottom, right = box
        expected_patch = images[image][top:bottom, left:right]
        assert np.abs(patch[: bottom - top, : right - left] - expected_patch).max() < 0.5 / 255 + 1e-6
        assert np.isnan(patch[bottom - top :]).all()
        assert np.isnan(patch[:, right - left :]).all()


def test_max_patches_value_does_not_depend_on_pixels_outside_patch(
    tiny: Network, scan: Scan, images: list[np.ndarray]
) -> None:
    last = Run(max_patches(tiny, scan, unit=("conv2", 5), k=3)).run().arrays
    for value, image, (row, col), (top, left, bottom, right) in zip(
        last["values"], last["images"], last["positions"], last["boxes"], strict=True
    ):
        other = np.random.default_rng(9).random((16, 16, 3)).astype(np.float32)
        other[top:bottom, left:right] = images[image][top:bottom, left:right]
        with torch.no_grad(), trace(tiny, ["conv2"]) as acts:
            tiny(tiny.batch(other))
        assert float(acts["conv2"][0, 5, row, col]) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(("projection", "technique"), [("guided backprop", guided_backprop), ("deconvnet", deconvnet)])
def test_max_patches_projection_is_cropped_from_technique(
    projection: str, technique: object, tiny: Network, scan: Scan
) -> None:
    last = Run(max_patches(tiny, scan, unit=("conv2", 1), k=3, projection=projection)).run().arrays
    for j in range(3):
        top, left, bottom, right = last["boxes"][j]
        unit = ("conv2", 1, tuple(int(i) for i in last["positions"][j]))
        whole = Run(technique(tiny, scan.image(int(last["images"][j])), unit=unit)).run().arrays["gradient"]
        projection_crop = last["projections"][j, : bottom - top, : right - left]
        assert np.allclose(projection_crop, whole[top:bottom, left:right], atol=1e-6)
        assert np.abs(projection_crop).max() > 1e-3


def test_max_patches_yields_patches_before_projections(tiny: Network, scan: Scan) -> None:
    frames = list(max_patches(tiny, scan, unit=("conv1", 0), k=4))[-5:]
    known = [np.isfinite(frame.arrays["projections"]).any((1, 2, 3)).sum() for frame in frames]
    assert known == [0, 1, 2, 3, 4]
    assert all(np.array_equal(f.arrays["patches"], frames[0].arrays["patches"], equal_nan=True) for f in frames)


def test_max_patches_allows_several_patches_per_image(tiny: Network, images: list[np.ndarray], tmp_path: Path) -> None:
    scan = Scan(tiny, images[:2], one_per_image=False, k=8, cache=tmp_path)
    last = Run(max_patches(tiny, scan, unit=("conv1", 3), k=8, projection="none")).run().arrays
    assert len(last["images"]) == 8
    assert len({(int(i), *map(int, at)) for i, at in zip(last["images"], last["positions"], strict=True)}) == 8


def test_max_patches_reports_dead_channels(images: list[np.ndarray], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        module[0].bias.copy_(torch.tensor([1.0, -99.0, 1.0, -99.0]))
    net = Network(module, size=16)
    scan = Scan(net, images, layers="all", cache=tmp_path)
    for layer in ("0", "1"):
        for channel in range(4):
            last = Run(max_patches(net, scan, unit=(layer, channel), projection="none")).run()
            assert last.scalars["dead"] == (channel in (1, 3))
            assert last.arrays["dead"].tolist() == [1, 3]


def test_max_patches_rejects_invalid_unit_or_network(tiny: Network, scan: Scan) -> None:
    for unit, message in (
        (("pool", 0), "pool"),
        (("", 0), "(?i)channel"),
        (("conv2", 8), r"conv2.*\b0\b.*\b7\b"),
    ):
        with pytest.raises(ValueError, match=message):
            next(max_patches(tiny, scan, unit=unit))
    other = Network.demo()
    with pytest.raises(ValueError, match="tiny"):
        next(max_patches(other, scan, unit=("conv1", 0)))


def test_max_patches_of_deep_units_mostly_share_class_on_toyscape(tmp_path: Path) -> None:
    net = Network.demo()
    scan = Scan(net, demo.Toyscape(200, seed=5), layers=[net.layers.last_spatial_layer().name], k=8, cache=tmp_path)
    Run(scan.frames()).run()
    top = scan.top(scan.layers[0])
    live = np.setdiff1d(np.arange(len(top.values)), top.dead)
    labels = scan.labels[top.images[live]]
    agreement = np.mean([np.bincount(row).max() / len(row) for row in labels])
    assert agreement > 0.6, "chance level is about 0.3"


def test_max_patches_of_missing_files_are_nan(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "images", 6)
    Run(Scan(tiny, folder, cache=tmp_path).frames()).run()
    scan = Scan(tiny, folder, cache=tmp_path)
    (folder / "3.png").unlink()
    last = Run(max_patches(tiny, scan, unit=("conv2", 1), k=6)).run().arrays
    gone = last["images"] == 3
    assert gone.sum() == 1
    for name in ("patches", "projections"):
        assert np.isnan(last[name]).all((1, 2, 3)).tolist() == gone.tolist()


def test_max_patches_keeps_requested_number_of_patches(tiny: Network, own_cache: None) -> None:
    many = np.random.default_rng(0).random((40, 16, 16, 3)).astype(np.float32)
    assert len(Run(max_patches(tiny, many, unit=("conv1", 0), k=33, projection="none")).run().arrays["values"]) == 33


def test_max_patches_unsupported_projection_error_lists_choices(image: np.ndarray, own_cache: None) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3)), size=16)
    scan = Scan(net, [image])
    with pytest.raises(ValueError, match=r'ReLU.*projection.*"gradient".*"none"') as caught:
        Run(max_patches(net, scan, unit=("2", 0))).run()
    assert "saliency" not in str(caught.value)
    assert Run(max_patches(net, scan, unit=("2", 0), projection="gradient")).run().done
