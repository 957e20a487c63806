from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seen import written
from torch import nn

from convis_widgets import demo
from convis_widgets.core import ImageSet, Network, Run, Scan
from convis_widgets.techniques import neighbors


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(2).random((20, 16, 16, 3)).astype(np.float32)


@pytest.fixture
def scan(tiny: Network, pictures: np.ndarray, tmp_path: Path) -> Scan:
    return Scan(tiny, ImageSet(pictures, labels=[i % 3 for i in range(20)]), cache=tmp_path)


def by_hand(rows: np.ndarray, query: np.ndarray, metric: str, without: int | None) -> list[tuple[float, int]]:
    """All of them, from the nearest on."""
    found = []
    for i, row in enumerate(rows.astype(np.float64)):
        if i != without:
            distance = np.sqrt(((row - query) ** 2).sum())
            if metric == "cosine":
                distance = 1 - row @ query / np.linalg.norm(row) / np.linalg.norm(query)
            found.append((float(distance), i))
    return sorted(found)


@pytest.mark.parametrize("metric", ["L2", "cosine"])
@pytest.mark.parametrize("block", [1 << 30, 1])
def test_slow_twin_all_distances_compared(
    metric: str, block: int, tiny: Network, scan: Scan, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.modules["convis_widgets.techniques.neighbors"], "BLOCK", block)
    last = Run(neighbors(tiny, scan, [3, 17], k=6, metric=metric)).run()
    spaces = {"pixels": pictures.reshape(20, -1), "features": scan.features()}
    for name, rows in spaces.items():
        agreement = []
        for m, query in enumerate((3, 17)):
            expected = by_hand(rows, rows[query].astype(np.float64), metric, query)[:6]
            assert last.arrays[name][m].tolist() == [i for _, i in expected]
            assert np.allclose(last.arrays[f"{name} distance"][m], [d for d, _ in expected], atol=1e-6)
            agreement += [i % 3 == query % 3 for _, i in expected]
        assert last.scalars[f"{name} agreement"] == pytest.approx(np.mean(agreement))


def test_many_queries_find_what_single_ones_find(tiny: Network, scan: Scan) -> None:
    together = Run(neighbors(tiny, scan, range(20), k=4)).run().arrays
    for query in range(20):
        alone = Run(neighbors(tiny, scan, query, k=4)).run().arrays
        assert together["query"][query] == alone["query"][0] == query
        for name in ("pixels", "features"):
            assert together[name][query].tolist() == alone[name][0].tolist()


def test_another_picture_has_all_of_the_set_for_neighbors(tiny: Network, scan: Scan, pictures: np.ndarray) -> None:
    last = Run(neighbors(tiny, scan, pictures[7], k=2)).run()
    assert last.arrays["pixels"][0, 0] == last.arrays["features"][0, 0] == 7
    assert last.arrays["pixels distance"][0, 0] == 0
    assert last.arrays["query"].tolist() == [-1]
    assert last.arrays["features distance"][0, 0] < 1e-5
    assert not last.scalars


def test_equally_near_ones_come_in_the_order_of_the_set(tiny: Network, tmp_path: Path) -> None:
    one, other = np.zeros((16, 16, 3), np.float32), np.full((16, 16, 3), 0.5, np.float32)
    scan = Scan(tiny, [one, other, one, other, other, one], cache=tmp_path)
    last = Run(neighbors(tiny, scan, [0, 4], k=4)).run().arrays
    assert last["pixels"].tolist() == [[2, 5, 1, 3], [1, 3, 0, 2]]


def test_a_small_set_has_fewer_neighbors(tiny: Network, pictures: np.ndarray, tmp_path: Path) -> None:
    last = Run(neighbors(tiny, Scan(tiny, pictures[:3], cache=tmp_path), 1, k=5)).run().arrays
    assert sorted(last["pixels"][0, :2]) == [0, 2]
    assert last["pixels"][0, 2:].tolist() == [-1, -1, -1]


def test_the_answer_grows_block_by_block_and_features_follow_pixels(
    tiny: Network, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.modules["convis_widgets.techniques.neighbors"], "BLOCK", 4 * 768 * 8)
    frames = [frame for frame in neighbors(tiny, scan, 0, k=3) if frame.arrays]
    assert len(frames) == 5 + 1
    assert [set(frame.arrays) >= {"features"} for frame in frames] == [False] * 5 + [True]
    assert [frame.step for frame in frames][:5] == [24, 28, 32, 36, 40]
    assert frames[-1].done


def test_a_picture_that_could_not_be_read_is_nobodys_neighbor(tiny: Network, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no picture")
    scan = Scan(tiny, folder, cache=tmp_path / "cache")
    last = Run(neighbors(tiny, scan, 0, k=4)).run().arrays
    assert sorted(last["pixels"][0, :3]) == [1, 3, 4]
    with pytest.raises(ValueError, match="picture 2 could not be read; choose another one"):
        Run(neighbors(tiny, scan, 2)).run()


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (20, ValueError, "there is no picture 20; give indices from 0 to 19"),
        ([], ValueError, "there is no query; give indices from 0 to 19"),
        (-1, ValueError, "there is no picture -1"),
        ("nowhere.png", FileNotFoundError, r"nowhere\.png does not exist"),
        (np.zeros((8, 8, 5), np.float32), ValueError, "is no picture"),
        (True, TypeError, "bool is no picture"),
    ],
)
def test_a_query_that_is_none_is_told(
    query: object, error: type[Exception], message: str, tiny: Network, scan: Scan
) -> None:
    with pytest.raises(error, match=message):
        Run(neighbors(tiny, scan, query)).run()


def test_arrays_are_compared_by_their_own_pixels(tmp_path: Path) -> None:
    """Those of 8x8 digits, though the network sees them enlarged."""
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    digits = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    last = Run(neighbors(net, Scan(net, digits, cache=tmp_path), 5, k=3, space="pixels")).run().arrays
    expected = by_hand(digits.reshape(12, -1) / 255, digits[5].ravel() / 255, "L2", 5)[:3]
    assert last["pixels"][0].tolist() == [i for _, i in expected]
    assert "features" not in last


def test_toyscape_is_told_apart_by_features_and_not_by_pixels(tmp_path: Path) -> None:
    scan = Scan(Network.demo(), demo.Toyscape(150, seed=6), layers=["conv1"], cache=tmp_path)
    last = Run(neighbors(scan.net, scan, range(150), k=5)).run().scalars
    assert last["features agreement"] > 0.8
    assert last["pixels agreement"] < 0.25


def test_queries_are_compared_in_parts(tiny: Network, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    whole = Run(neighbors(tiny, scan, range(20), k=4)).run().arrays
    monkeypatch.setattr(sys.modules["convis_widgets.techniques.neighbors"], "QUERIES", 3)
    parts = Run(neighbors(tiny, scan, range(20), k=4)).run().arrays
    assert all(np.array_equal(whole[name], parts[name]) for name in ("pixels", "features"))


@pytest.mark.parametrize("kind", ["array", "photo", "small array"])
def test_a_query_from_elsewhere_is_seen_as_the_pictures_of_the_set_are(kind: str, tiny: Network, tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (9, 1, 1, 3), dtype=np.uint8)
    small = np.broadcast_to(colors, (9, 8, 8, 3)).copy()  # the network takes 16x16
    scan = Scan(tiny, small, cache=tmp_path)
    large = Image.fromarray(small[4]).resize((80, 80), Image.Resampling.NEAREST)
    query = {"small array": small[4], "array": np.asarray(large), "photo": large}[kind]
    last = Run(neighbors(tiny, scan, query, k=9)).run().arrays
    assert last["pixels"][0, 0] == last["features"][0, 0] == 4
    if kind == "small array":
        assert last["pixels distance"][0, 0] == 0
        assert last["features distance"][0, 0] < 1e-5
    assert last["pixels distance"][0, 1] > 5 * last["pixels distance"][0, 0]


def test_a_gray_query_among_gray_pictures(tiny_gray: Network, tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    scan = Scan(tiny_gray, small, cache=tmp_path)
    for query in (small[3], Image.fromarray(small[3]).convert("RGB")):
        last = Run(neighbors(tiny_gray, scan, query, k=2)).run().arrays
        assert last["pixels"][0, 0] == last["features"][0, 0] == 3


def test_a_picture_that_is_gone_is_nobodys_neighbor_in_pixels(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "pictures", 5)
    Run(Scan(tiny, folder, cache=tmp_path).frames()).run()
    scan = Scan(tiny, folder, cache=tmp_path)
    (folder / "2.png").unlink()
    last = Run(neighbors(tiny, scan, [0, 2], k=4)).run().arrays
    assert sorted(last["pixels"][0].tolist()) == [-1, 1, 3, 4]
    assert last["pixels"][1].tolist() == [-1] * 4
    assert sorted(last["features"][0].tolist()) == [1, 2, 3, 4]
    assert sorted(last["features"][1].tolist()) == [0, 1, 3, 4]


@pytest.mark.parametrize("query", [torch.tensor([0, 3]), np.array([0, 3]), (0, 3), range(0, 4, 3)])
def test_indices_of_any_kind(query: object, tiny: Network, scan: Scan) -> None:
    expected = Run(neighbors(tiny, scan, [0, 3])).run().arrays["features"]
    assert np.array_equal(Run(neighbors(tiny, scan, query)).run().arrays["features"], expected)
    for one in (torch.tensor(3), np.array(3), np.int64(3)):
        assert np.array_equal(Run(neighbors(tiny, scan, one)).run().arrays["features"], expected[1:])
