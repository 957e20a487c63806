from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.attribution.baseline import make_baseline
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.deletion_insertion import deletion_insertion

MODULE = "convis_widgets.techniques.attribution.deletion_insertion"


def reference_curves(
    net: Network,
    image: np.ndarray,
    heat: np.ndarray,
    steps: int,
    deletion_image: np.ndarray,
    insertion_image: np.ndarray,
    target: int,
) -> tuple[list[float], list[float], list[float]]:
    """Fraction, deletion and insertion, computed image by image and pixel by pixel."""

    def p(array: np.ndarray) -> float:
        with torch.no_grad():
            return float(net(torch.from_numpy(array).permute(2, 0, 1)[None]).softmax(1)[0, target])

    pixels = [(row, col) for row in range(heat.shape[0]) for col in range(heat.shape[1])]
    known = [pixel for pixel in pixels if heat[pixel] == heat[pixel]]
    highest_first = sorted(known, key=lambda pixel: -heat[pixel]) + [pixel for pixel in pixels if pixel not in known]
    fraction, deletion, insertion = [], [], []
    for step in range(steps + 1):
        count = round(step * len(pixels) / steps)
        deleted, inserted = image.copy(), insertion_image.copy()
        for pixel in highest_first[:count]:
            deleted[pixel], inserted[pixel] = deletion_image[pixel], image[pixel]
        fraction.append(count / len(pixels))
        deletion.append(p(deleted))
        insertion.append(p(inserted))
    return fraction, deletion, insertion


def area(x: list[float], y: list[float]) -> float:
    return sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))


def baseline_image(net: Network, image: np.ndarray, baseline: Any, seed: int = 0) -> np.ndarray:
    return make_baseline(net, net.batch(image), baseline, seed)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("steps", "baseline", "insertion_baseline"),
    [(8, "mean", "blur"), (5, "black", "gray"), (1, (0.1, 0.2, 0.9), "noise"), (40, "blur", 0.5)],
)
def test_deletion_insertion_matches_reference_image_by_image(
    tiny: Network, image: np.ndarray, steps: int, baseline: Any, insertion_baseline: Any
) -> None:
    target = tiny.class_index(tiny.predict(image)[0][0])
    rng = np.random.default_rng(3)
    heat = rng.integers(-5, 5, (16, 16)).astype(np.float32)  # with ties
    heat[rng.random((16, 16)) < 0.1] = np.nan
    kwargs = {"steps": steps, "baseline": baseline, "insertion_baseline": insertion_baseline, "seed": 4, "target": target}
    frame = Run(deletion_insertion(tiny, image, heat, **kwargs)).run()
    insertion_image = baseline_image(tiny, image, insertion_baseline, 4)
    fraction, deletion, insertion = reference_curves(
        tiny, image, heat, steps, baseline_image(tiny, image, baseline, 4), insertion_image, target
    )
    for name, expected in (("fraction", fraction), ("deletion", deletion), ("insertion", insertion)):
        assert np.allclose(frame.arrays[name], expected, atol=1e-5), name
    assert np.ptp(deletion) > 1e-3
    assert frame.scalars["deletion area"] == pytest.approx(area(fraction, deletion), abs=1e-5)
    assert frame.scalars["insertion area"] == pytest.approx(area(fraction, insertion), abs=1e-5)


def test_deletion_insertion_curves_have_expected_endpoints(tiny: Network, image: np.ndarray) -> None:
    best = tiny.class_index(tiny.predict(image)[0][0])
    frame = Run(deletion_insertion(tiny, image, image[:, :, 0])).run()
    original, deleted, blurred = (
        float(tiny.predict_proba(array)[best])
        for array in (image, baseline_image(tiny, image, "mean"), baseline_image(tiny, image, "blur"))
    )
    deletion, insertion = frame.arrays["deletion"], frame.arrays["insertion"]
    assert [deletion[0], deletion[-1], insertion[0], insertion[-1]] == pytest.approx(
        [original, deleted, blurred, original], abs=1e-5
    )
    assert np.allclose(frame.image, baseline_image(tiny, image, "mean"))
    assert np.allclose(frame.arrays["inserted"], image)
    assert np.array_equal(frame.heat, image[:, :, 0])


def test_deletion_insertion_scores_correct_map_above_its_negative() -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(144, 1)), size=12, channels=1)
    image = np.random.default_rng(0).random((12, 12, 1)).astype(np.float32)
    with torch.no_grad():
        net.module[1].weight.mul_(10)
    right = net.weights("1")[0][0, 0] * (image[:, :, 0] - 0.5)  # each pixel's contribution to the score
    kwargs = {"target": 0, "baseline": "gray", "insertion_baseline": "gray"}
    good, bad = (Run(deletion_insertion(net, image, heat, **kwargs)).run().scalars for heat in (right, -right))
    assert good["deletion area"] < bad["deletion area"] - 0.1
    assert good["insertion area"] > bad["insertion area"] + 0.1


def test_deletion_insertion_streams_curves_and_ends_with_areas(
    tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(deletion_insertion(tiny, image, image[:, :, 0], steps=9)).run()
    for size, batches in ((1, 10), (6, 4)):
        monkeypatch.setattr(f"{MODULE}.auto_batch_size", lambda *_args, size=size: size)
        frames = list(deletion_insertion(tiny, image, image[:, :, 0], steps=9))
        assert len(frames) == batches
        for frame in frames:
            for name in ("deletion", "insertion"):
                known = np.isfinite(frame.arrays[name])
                assert known[: frame.step].all()
                assert not known[frame.step :].any()
                assert np.allclose(frame.arrays[name][known], whole.arrays[name][known], atol=1e-6)
            assert bool(frame.scalars) == frame.done
        first = frames[0]
        last = first.step - 1
        changed = (first.image != image).any(2).mean()
        assert changed == pytest.approx(first.arrays["fraction"][last], abs=0.01), "the image belongs to the last point"
    assert whole.scalars == pytest.approx(dict(frames[-1].scalars), abs=1e-6)


def test_deletion_insertion_rejects_map_of_other_size(tiny: Network, image: np.ndarray) -> None:
    for heat, actual in ((np.zeros((8, 16)), "8x16"), (np.zeros((16, 16, 3)), "16x16x3")):
        with pytest.raises(ValueError, match=rf"\b{actual}\b.*\b16x16\b"):
            next(deletion_insertion(tiny, image, heat))


def test_deletion_insertion_accepts_lists_arrays_and_tensors(tiny: Network, image: np.ndarray) -> None:
    heat = (image[:, :, 0] * 9).astype(np.int64)
    frozen = Frame(1, heat=heat).heat
    tensor = torch.from_numpy(heat / 3).requires_grad_()
    kinds = (heat, heat.tolist(), heat.astype(np.float16), frozen, torch.from_numpy(heat), tensor)
    curves = [Run(deletion_insertion(tiny, image, kind)).run().arrays["deletion"] for kind in kinds]
    assert all(np.array_equal(curve, curves[0]) for curve in curves)
    assert np.ptp(curves[0]) > 0


def test_deletion_insertion_preserves_module_and_global_rng(
    tiny_module: nn.Module, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}.auto_batch_size", lambda *_args: 2)
    before, random = [p.clone() for p in tiny_module.parameters()], torch.get_rng_state()
    frames = deletion_insertion(Network(tiny_module, size=16), image, image[:, :, 0], insertion_baseline="noise")
    next(frames)
    frames.close()
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_module.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
