from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from convis_widgets.core import Network, Run
from convis_widgets.techniques import occlusion


def by_hand(net: Network, picture: np.ndarray, patch: int, stride: int, color: object, target: int) -> np.ndarray:
    def p(image: np.ndarray) -> float:
        with torch.no_grad():
            return float(net(torch.from_numpy(image).permute(2, 0, 1)[None]).softmax(1)[0, target])

    edges = sorted({*range(0, 16 - patch + 1, stride), 16 - patch})
    grid = np.zeros((len(edges), len(edges)))
    for i, top in enumerate(edges):
        for j, left in enumerate(edges):
            hidden = picture.copy()
            for y in range(top, top + patch):
                for x in range(left, left + patch):
                    hidden[y, x] = color
            grid[i, j] = p(hidden)
    return grid


@pytest.mark.parametrize(
    ("patch", "stride", "fill", "color"),
    [
        (5, 3, "mean", (0.5, 0.4, 0.3)),
        (4, 4, "gray", 0.5),
        (16, 1, "black", 0),
        (1, 5, "white", 1),
        (3, 20, (0.1, 0.2, 0.9), (0.1, 0.2, 0.9)),
    ],
)
def test_slow_twin_one_position_after_the_other(
    tiny: Network, picture: np.ndarray, patch: int, stride: int, fill: object, color: object
) -> None:
    target = tiny.target(tiny.predict(picture)[0][0])
    frame = Run(occlusion(tiny, picture, patch=patch, stride=stride, fill=fill)).run()
    expected = by_hand(tiny, picture, patch, stride, color, target)
    assert np.allclose(frame.arrays["probability"], expected, atol=1e-6)
    if patch < 16:
        assert np.ptp(expected) > 5e-4


def test_it_streams_coarse_to_fine_and_never_changes_its_mind(tiny: Network, picture: np.ndarray) -> None:
    frames = list(occlusion(tiny, picture, patch=4, stride=1))
    known = [np.isfinite(frame.arrays["probability"]) for frame in frames]
    assert not known[0].any()
    last = frames[-1].arrays["probability"]
    for frame, here in zip(frames, known, strict=True):
        assert here.sum() == frame.step
        assert np.array_equal(frame.arrays["probability"][here], last[here])
    # after the first round of 4 positions the whole picture has an answer
    first_full = next(frame for frame in frames if np.isfinite(frame.heat).all())
    assert first_full.step < 0.2 * first_full.total or len(frames) < 4


def test_the_map_grows_from_the_first_answer_on(tiny: Network, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["convis_widgets.techniques.occlusion"]._WORK, "cpu", 1)  # batches of one
    frames = list(occlusion(tiny, picture, patch=4, stride=1))
    shares = [np.isfinite(frame.heat).mean() for frame in frames]
    assert shares[0] == 0
    assert 0 < shares[1] < 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_heat_is_the_fall_at_the_patch_centers_and_linear_between(tiny: Network, picture: np.ndarray) -> None:
    frame = Run(occlusion(tiny, picture, target=0, patch=3, stride=2)).run()
    fall = frame.scalars["probability"] - frame.arrays["probability"]
    rows = frame.arrays["rows"]
    for i, top in enumerate(rows):
        for j, left in enumerate(rows):
            assert np.isclose(frame.heat[top + 1, left + 1], fall[i, j], atol=1e-5)
    assert np.isclose(frame.heat[2, 1], (fall[0, 0] + fall[1, 0]) / 2, atol=1e-5)
    assert np.isclose(frame.heat[0, 0], fall[0, 0], atol=1e-5)


def test_captum_agrees_where_its_windows_are_ours(tiny: Network, picture: np.ndarray) -> None:
    from captum.attr import Occlusion

    def p(batch: torch.Tensor) -> torch.Tensor:
        return tiny.probabilities(batch)

    batch = tiny.batch(picture)
    target = int(p(batch).argmax())
    with torch.no_grad():
        theirs = Occlusion(p).attribute(batch, (3, 4, 4), (3, 4, 4), baselines=0.5, target=target)[0, 0].numpy()
    frame = Run(occlusion(tiny, picture, target=target, patch=4, stride=4, fill="gray")).run()
    ours = frame.scalars["probability"] - frame.arrays["probability"]
    assert np.abs(ours).max() > 1e-3
    assert np.allclose(ours, theirs[::4, ::4], atol=1e-6)
