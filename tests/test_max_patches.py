from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from seen import written
from torch import nn

from convis_widgets import demo
from convis_widgets.core import Network, Run, Scan, trace
from convis_widgets.techniques import deconvnet, guided_backprop, max_patches


@pytest.fixture
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.random((16, 16, 3)).astype(np.float32) for _ in range(12)]


@pytest.fixture
def scan(tiny: Network, pictures: list[np.ndarray], tmp_path: Path) -> Scan:
    return Scan(tiny, pictures, cache=tmp_path)


def strongest(net: Network, pictures: list[np.ndarray], layer: str, channel: int) -> list[tuple[float, int, int, int]]:
    """The strongest position of each picture, by looking at one after the other."""
    found = []
    for i, picture in enumerate(pictures):
        with torch.no_grad(), trace(net, [layer]) as acts:
            net(net.batch(picture))
        values = acts[layer][0, channel]
        row, column = divmod(int(values.argmax()), values.shape[1])
        found.append((float(values.max()), i, row, column))
    return sorted(found, key=lambda item: -item[0])


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_slow_twin_the_strongest_positions_and_what_they_see(
    layer: str, tiny: Network, scan: Scan, pictures: list[np.ndarray]
) -> None:
    last = Run(max_patches(tiny, scan, of=(layer, 2), k=5)).run().arrays
    expected = strongest(tiny, pictures, layer, 2)[:5]
    assert np.allclose(last["values"], [value for value, *_ in expected], atol=1e-5)
    assert last["images"].tolist() == [image for _, image, _, _ in expected]
    assert last["positions"].tolist() == [[row, col] for *_, row, col in expected]
    for patch, box, (_, image, row, col) in zip(last["patches"], last["boxes"], expected, strict=True):
        assert tuple(box) == tiny.layers[layer].box((row, col))
        top, left, bottom, right = box
        seen = pictures[image][top:bottom, left:right]
        assert np.abs(patch[: bottom - top, : right - left] - seen).max() < 0.5 / 255 + 1e-6
        assert np.isnan(patch[bottom - top :]).all()
        assert np.isnan(patch[:, right - left :]).all()


def test_pixels_outside_of_a_patch_make_no_difference(tiny: Network, scan: Scan, pictures: list[np.ndarray]) -> None:
    last = Run(max_patches(tiny, scan, of=("conv2", 5), k=3)).run().arrays
    for value, image, (row, col), (top, left, bottom, right) in zip(
        last["values"], last["images"], last["positions"], last["boxes"], strict=True
    ):
        other = np.random.default_rng(9).random((16, 16, 3)).astype(np.float32)
        other[top:bottom, left:right] = pictures[image][top:bottom, left:right]
        with torch.no_grad(), trace(tiny, ["conv2"]) as acts:
            tiny(tiny.batch(other))
        assert float(acts["conv2"][0, 5, row, col]) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(("projection", "technique"), [("guided backprop", guided_backprop), ("deconvnet", deconvnet)])
def test_a_projection_is_that_of_its_position_cut_to_the_patch(
    projection: str, technique: object, tiny: Network, scan: Scan
) -> None:
    last = Run(max_patches(tiny, scan, of=("conv2", 1), k=3, projection=projection)).run().arrays
    for j in range(3):
        top, left, bottom, right = last["boxes"][j]
        unit = ("conv2", 1, tuple(int(i) for i in last["positions"][j]))
        whole = Run(technique(tiny, scan.view(int(last["images"][j])), of=unit)).run().arrays["gradient"]
        given = last["projections"][j, : bottom - top, : right - left]
        assert np.allclose(given, whole[top:bottom, left:right], atol=1e-6)
        assert np.abs(given).max() > 1e-3


def test_patches_come_first_and_projections_one_by_one(tiny: Network, scan: Scan) -> None:
    frames = list(max_patches(tiny, scan, of=("conv1", 0), k=4))[-5:]
    known = [np.isfinite(frame.arrays["projections"]).any((1, 2, 3)).sum() for frame in frames]
    assert known == [0, 1, 2, 3, 4]
    assert all(np.array_equal(f.arrays["patches"], frames[0].arrays["patches"], equal_nan=True) for f in frames)


def test_several_patches_of_one_picture_when_they_are_allowed(
    tiny: Network, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    scan = Scan(tiny, pictures[:2], one_per_image=False, k=8, cache=tmp_path)
    last = Run(max_patches(tiny, scan, of=("conv1", 3), k=8, projection="none")).run().arrays
    assert len(last["images"]) == 8
    assert len({(int(i), *map(int, at)) for i, at in zip(last["images"], last["positions"], strict=True)}) == 8


def test_a_dead_channel_is_said_to_be_dead(pictures: list[np.ndarray], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        module[0].bias.copy_(torch.tensor([1.0, -99.0, 1.0, -99.0]))
    net = Network(module, size=16)
    scan = Scan(net, pictures, layers="all", cache=tmp_path)
    for layer in ("0", "1"):
        for channel in range(4):
            last = Run(max_patches(net, scan, of=(layer, channel), projection="none")).run()
            assert last.scalars["dead"] == (channel in (1, 3))
            assert last.arrays["dead"].tolist() == [1, 3]


def test_what_cannot_be_shown_is_told(tiny: Network, scan: Scan) -> None:
    for of, message in (
        (("pool", 0), "pool was not scanned"),
        (("", 0), "patches are of a layer's channel"),
        (("conv2", 8), "conv2 has channels 0 to 7"),
    ):
        with pytest.raises(ValueError, match=message):
            next(max_patches(tiny, scan, of=of))
    other = Network.demo()
    with pytest.raises(ValueError, match="were scanned by tiny, not by this network"):
        next(max_patches(other, scan, of=("conv1", 0)))


def test_on_toyscape_patches_of_deep_units_are_of_one_class(tmp_path: Path) -> None:
    net = Network.demo()
    scan = Scan(net, demo.Toyscape(200, seed=5), layers=[net.layers.last_maps().name], k=8, cache=tmp_path)
    Run(scan.frames()).run()
    top = scan.top(scan.layers[0])
    live = np.setdiff1d(np.arange(len(top.values)), top.dead)
    labels = scan.labels[top.images[live]]
    agreement = np.mean([np.bincount(row).max() / len(row) for row in labels])
    assert agreement > 0.6, "by chance it would be about 0.3"


def test_patches_of_pictures_that_are_gone_are_not_numbers(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "pictures", 6)
    Run(Scan(tiny, folder, cache=tmp_path).frames()).run()
    scan = Scan(tiny, folder, cache=tmp_path)
    (folder / "3.png").unlink()
    last = Run(max_patches(tiny, scan, of=("conv2", 1), k=6)).run().arrays
    gone = last["images"] == 3
    assert gone.sum() == 1
    for name in ("patches", "projections"):
        assert np.isnan(last[name]).all((1, 2, 3)).tolist() == gone.tolist()


def test_as_many_are_kept_as_are_asked_for(tiny: Network, own_cache: None) -> None:
    many = np.random.default_rng(0).random((40, 16, 16, 3)).astype(np.float32)
    assert len(Run(max_patches(tiny, many, of=("conv1", 0), k=33, projection="none")).run().arrays["values"]) == 33


def test_where_a_rule_is_not_defined_it_says_what_can_be_chosen(picture: np.ndarray, own_cache: None) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3)), size=16)
    scan = Scan(net, [picture])
    with pytest.raises(ValueError, match=r'ReLU only, and .*; choose projection="gradient" or "none"$') as caught:
        Run(max_patches(net, scan, of=("2", 0))).run()
    assert "saliency" not in str(caught.value)
    assert Run(max_patches(net, scan, of=("2", 0), projection="gradient")).run().done
