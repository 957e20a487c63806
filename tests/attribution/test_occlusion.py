from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.attribution.incremental import patch_runner
from convis_widgets.core.attribution.incremental.incremental_forward import IncrementalForward
from convis_widgets.core.attribution.incremental.patch_runner import PatchRunner
from convis_widgets.core.attribution.incremental.workload import Limits
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.network.unit import Unit
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.deconvnet import deconvnet
from convis_widgets.techniques.attribution.occlusion import occlusion


def reference_probabilities(
    net: Network, image: np.ndarray, patch_size: int, stride: int, color: object, target: int
) -> np.ndarray:
    def p(array: np.ndarray) -> float:
        with torch.no_grad():
            return float(net(net.batch(array)).softmax(1)[0, target])

    edges = sorted({*range(0, 16 - patch_size + 1, stride), 16 - patch_size})
    grid = np.zeros((len(edges), len(edges)))
    for i, top in enumerate(edges):
        for j, left in enumerate(edges):
            occluded = image.copy()
            for y in range(top, top + patch_size):
                for x in range(left, left + patch_size):
                    occluded[y, x] = color
            grid[i, j] = p(occluded)
    return grid


@pytest.mark.parametrize(
    ("patch_size", "stride", "baseline", "color"),
    [
        (5, 3, "mean", (0.5, 0.4, 0.3)),
        (4, 4, "gray", 0.5),
        (16, 1, "black", 0),
        (1, 5, "white", 1),
        (3, 20, (0.1, 0.2, 0.9), (0.1, 0.2, 0.9)),
    ],
)
def test_occlusion_matches_reference_position_by_position(
    tiny: Network, image: np.ndarray, patch_size: int, stride: int, baseline: object, color: object
) -> None:
    target = tiny.class_index(tiny.predict(image)[0][0])
    frame = Run(occlusion(tiny, image, patch_size=patch_size, stride=stride, baseline=baseline)).run()
    expected = reference_probabilities(tiny, image, patch_size, stride, color, target)
    assert np.allclose(frame.arrays["probability"], expected, atol=1e-6)
    if patch_size < 16:
        assert np.ptp(expected) > 5e-4


def test_occlusion_streams_coarse_to_fine_without_revising_values(tiny: Network, image: np.ndarray) -> None:
    frames = list(occlusion(tiny, image, patch_size=4, stride=1))
    known = [np.isfinite(frame.arrays["probability"]) for frame in frames]
    assert not known[0].any()
    last = frames[-1].arrays["probability"]
    for frame, is_known in zip(frames, known, strict=True):
        assert is_known.sum() == frame.step
        assert np.array_equal(frame.arrays["probability"][is_known], last[is_known])
    # after the first coarse rounds the map covers the whole image
    first_full = next(frame for frame in frames if np.isfinite(frame.heat).all())
    assert first_full.step < 0.2 * first_full.total or len(frames) < 4


def test_occlusion_map_coverage_grows_from_first_value(
    tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_runner, "_MIN_BATCH", 1)
    monkeypatch.setitem(patch_runner._LIMITS, "cpu", Limits(1, 1, 1, 0, 0, 0))  # batches of one
    frames = list(occlusion(tiny, image, patch_size=4, stride=1))
    fractions = [np.isfinite(frame.heat).mean() for frame in frames]
    assert fractions[0] == 0
    assert 0 < fractions[1] < 1
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_occlusion_heat_interpolates_drops_between_patch_centers(tiny: Network, image: np.ndarray) -> None:
    frame = Run(occlusion(tiny, image, target=0, patch_size=3, stride=2)).run()
    drop = frame.scalars["probability"] - frame.arrays["probability"]
    rows = frame.arrays["rows"]
    for i, top in enumerate(rows):
        for j, left in enumerate(rows):
            assert np.isclose(frame.heat[top + 1, left + 1], drop[i, j], atol=1e-5)
    assert np.isclose(frame.heat[2, 1], (drop[0, 0] + drop[1, 0]) / 2, atol=1e-5)
    assert np.isclose(frame.heat[0, 0], drop[0, 0], atol=1e-5)


def test_occlusion_matches_captum_for_non_overlapping_patches(tiny: Network, image: np.ndarray) -> None:
    from captum.attr import Occlusion

    def p(batch: torch.Tensor) -> torch.Tensor:
        return tiny.predictions(batch)

    batch = tiny.batch(image)
    target = int(p(batch).argmax())
    with torch.no_grad():
        theirs = Occlusion(p).attribute(batch, (3, 4, 4), (3, 4, 4), baselines=0.5, target=target)[0, 0].numpy()
    frame = Run(occlusion(tiny, image, target=target, patch_size=4, stride=4, baseline="gray")).run()
    ours = frame.scalars["probability"] - frame.arrays["probability"]
    assert np.abs(ours).max() > 1e-3
    assert np.allclose(ours, theirs[::4, ::4], atol=1e-6)


def occlude(image: np.ndarray, top: int, left: int, patch_size: int, color: object) -> np.ndarray:
    occluded = image.copy()
    occluded[top : top + patch_size, left : left + patch_size] = color
    return occluded


def test_occlusion_top_classes_match_prediction_on_occluded_image(tiny: Network, image: np.ndarray) -> None:
    frame = Run(occlusion(tiny, image, patch_size=9, stride=7, baseline="white")).run()
    for i, j in np.ndindex(2, 2):
        expected = tiny.predict(occlude(image, frame.arrays["rows"][i], frame.arrays["cols"][j], 9, 1.0))
        assert [tiny.labels[c] for c in frame.arrays["top"][i, j]] == [label for label, _ in expected]
        assert np.allclose(frame.arrays["top probability"][i, j], [p for _, p in expected], atol=1e-6)
    first = next(occlusion(tiny, image, patch_size=9, stride=7))
    assert (first.arrays["top"] == -1).all()


@pytest.mark.parametrize("unit_like", [("conv1", 1), ("conv1", 2, (3, 4)), ("fc", 0)])
def test_occlusion_of_unit_records_its_own_value(tiny: Network, image: np.ndarray, unit_like: tuple) -> None:
    unit = Unit.ensure(unit_like).with_argmax_position(tiny, tiny.batch(image))

    def value(array: np.ndarray) -> float:
        with trace(tiny, [unit.layer]) as acts, torch.no_grad():
            tiny(tiny.batch(array))
        return float(tiny.as_maps(unit.layer, acts[unit.layer])[0, unit.channel][unit.position])

    frame = Run(occlusion(tiny, image, unit=unit_like, patch_size=7, stride=5, baseline="black")).run()
    assert frame.scalars["value"] == pytest.approx(value(image), abs=1e-6)
    assert "probability" not in frame.arrays
    values = frame.arrays["value"]
    for i, j in np.ndindex(values.shape):
        occluded = occlude(image, frame.arrays["rows"][i], frame.arrays["cols"][j], 7, 0.0)
        assert values[i, j] == pytest.approx(value(occluded), rel=1e-5, abs=1e-6)
    assert np.ptp(values) > 1e-3


@pytest.mark.parametrize("channel", [None, 2])
def test_occlusion_layer_gives_activation_and_projection_maps(tiny: Network, image: np.ndarray, channel: int | None) -> None:
    def maps(array: np.ndarray) -> np.ndarray:
        with trace(tiny, ["conv1"]) as acts, torch.no_grad():
            tiny(tiny.batch(array))
        return acts["conv1"][0].numpy()

    frame = Run(occlusion(tiny, image, layer="conv1", channel=channel, patch_size=6, stride=5, baseline="gray")).run()
    watched = int(maps(image).sum((1, 2)).argmax()) if channel is None else channel
    assert frame.scalars["channel"] == watched
    assert frame.scalars["activation"] == pytest.approx(maps(image)[watched].sum(), rel=1e-5)
    for i, j in np.ndindex(frame.arrays["activation"].shape):
        occluded = occlude(image, frame.arrays["rows"][i], frame.arrays["cols"][j], 6, 0.5)
        assert frame.arrays["activation"][i, j] == pytest.approx(maps(occluded)[watched].sum(), rel=1e-4, abs=1e-4)
    alone = Run(deconvnet(tiny, image, unit=("conv1", watched))).run().arrays["gradient"]
    assert np.allclose(frame.arrays["projection"], alone, atol=1e-7)
    assert np.array_equal(frame.arrays["top"][..., 0].shape, frame.arrays["probability"].shape)


def test_occlusion_average_is_mean_over_covering_patches(tiny: Network, image: np.ndarray) -> None:
    frame = Run(occlusion(tiny, image, patch_size=5, stride=2, average=True)).run()
    drop = frame.scalars["probability"] - frame.arrays["probability"]
    for y, x in [(0, 0), (7, 3), (15, 15), (4, 11)]:
        covering = [
            drop[i, j]
            for i, top in enumerate(frame.arrays["rows"])
            for j, left in enumerate(frame.arrays["cols"])
            if top <= y < top + 5 and left <= x < left + 5
        ]
        assert frame.heat[y, x] == pytest.approx(np.mean(covering), abs=1e-6)


def test_occlusion_with_the_plan_of_another_image(tiny: Network) -> None:
    """Also for another class and unit, and after the module has got other weights."""
    for seed, options in enumerate(
        [{"target": 0}, {"target": 3}, {"unit": ("conv2", 1)}, {"unit": ("conv2", 2)}, {"target": 3}]
    ):
        image = np.random.default_rng(seed).random((16, 16, 3)).astype(np.float32)
        fresh = Network(copy.deepcopy(tiny.module), transform=tiny.transform, name="fresh")
        frames = [Run(occlusion(net, image, patch_size=5, stride=1, **options)).run() for net in (tiny, fresh)]
        for name, expected in frames[1].arrays.items():
            assert np.allclose(frames[0].arrays[name], expected, atol=1e-6, equal_nan=True), name
        with torch.no_grad():
            tiny.module.conv1.weight.mul_(1.1)


@pytest.mark.parametrize("slower", [True, False])
def test_occlusion_runs_what_is_faster_on_the_device(
    slower: bool, tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Run(occlusion(Network(tiny.module, transform=tiny.transform), image, patch_size=5, stride=1)).run()
    measured: list[str] = []

    def seconds(_runner: PatchRunner, run: Any, _groups: Any) -> float:
        measured.append(run.__name__)
        return float(slower == (run.__name__ == "_run_incrementally"))

    monkeypatch.setattr(patch_runner, "_MEASURED_DEVICES", ("cpu",))
    monkeypatch.setattr(PatchRunner, "_seconds", seconds)
    calls: list[int] = []
    run_in_full = PatchRunner._run_in_full

    def _run_in_full(self: PatchRunner, groups: Any) -> torch.Tensor:
        calls.append(len(groups))
        return run_in_full(self, groups)

    monkeypatch.setattr(PatchRunner, "_run_in_full", _run_in_full)
    for _ in range(2):
        frame = Run(occlusion(tiny, image, patch_size=5, stride=1)).run()
        assert np.allclose(frame.heat, expected.heat, atol=1e-6)
    assert sorted(measured) == ["_run_in_full", "_run_incrementally"], "once for a plan"
    assert bool(calls) == slower


@pytest.mark.parametrize("most", [1, 5, 40])
@pytest.mark.parametrize("incremental", [True, False])
def test_occlusion_goes_on_with_smaller_batches_where_memory_is_short(
    most: int, incremental: bool, tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Run(occlusion(tiny, image, patch_size=5, stride=1)).run()
    owner, name = (IncrementalForward, "run") if incremental else (PatchRunner, "_run_in_full")
    run, sizes = getattr(owner, name), []

    def short_of_memory(self: Any, positions: Any) -> Any:
        count = sum(map(len, positions))
        sizes.append(count)
        if count > most:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, positions)

    monkeypatch.setattr(owner, name, short_of_memory)
    net = Network(tiny.module, transform=tiny.transform)
    net.one_image_at_a_time = not incremental
    frame = Run(occlusion(net, image, patch_size=5, stride=1)).run()
    assert np.allclose(frame.heat, expected.heat, atol=1e-6)
    assert sum(size <= most for size in sizes) >= 144 / most
    if incremental:
        assert sum(size > most for size in sizes) < 12, "later batches are smaller from the start"


def test_occlusion_of_an_image_that_never_fits_says_so(
    tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(IncrementalForward, "run", short_of_memory)
    monkeypatch.setattr(PatchRunner, "_run_in_full", short_of_memory)
    with pytest.raises(ValueError, match="one image of 3x16x16 does not fit in the memory of cpu; choose a smaller one"):
        Run(occlusion(tiny, image)).run()


class OneImage(nn.Conv2d):
    """A convolution with memory for one image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)


def test_occlusion_with_memory_for_one_image(image: np.ndarray) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    expected = Run(occlusion(Network(nn.Sequential(*layers), size=16), image, target=1)).run()
    one = OneImage(3, 6, 3)
    one.load_state_dict(layers[0].state_dict())
    net = Network(nn.Sequential(one, *layers[1:]), size=16)
    net.one_image_at_a_time = False
    assert np.allclose(Run(occlusion(net, image, target=1)).run().heat, expected.heat, atol=1e-6)


class InPlaceWriter(nn.Module):
    """Modifies some channels of its activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x[:, :2].mul_(3)
        return self.head(x.relu().mean((2, 3)))


class RawMemoryReader(nn.Module):
    """Reads the raw memory of its activations, which a patched tensor does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.head(torch.from_numpy(x.detach().numpy().copy()).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [InPlaceWriter, RawMemoryReader])
def test_occlusion_falls_back_to_full_forward_pass(kind: type[nn.Module], image: np.ndarray) -> None:
    torch.manual_seed(3)
    net = Network(kind(), size=16)
    frame = Run(occlusion(net, image, target=1, patch_size=6, stride=5, baseline="black")).run()
    for i, j in np.ndindex(frame.arrays["probability"].shape):
        occluded = occlude(image, frame.arrays["rows"][i], frame.arrays["cols"][j], 6, 0.0)
        assert frame.arrays["probability"][i, j] == pytest.approx(net.predict_proba(occluded)[1], abs=1e-6)
    assert np.ptp(frame.arrays["probability"]) > 1e-4
