from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from widget_helpers import written

from convis_widgets import demo
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.neighbors import neighbors


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(2).random((20, 16, 16, 3)).astype(np.float32)


@pytest.fixture
def scan(tiny: Network, images: np.ndarray, tmp_path: Path) -> Scan:
    return Scan(tiny, ImageSet(images, labels=[i % 3 for i in range(20)]), cache=tmp_path)


def reference_neighbors(rows: np.ndarray, query: np.ndarray, metric: str, without: int | None) -> list[tuple[float, int]]:
    """Reference: (distance, index) of all rows, nearest first."""
    distances = []
    for i, row in enumerate(rows.astype(np.float64)):
        if i != without:
            distance = np.sqrt(((row - query) ** 2).sum())
            if metric == "cosine":
                distance = 1 - row @ query / np.linalg.norm(row) / np.linalg.norm(query)
            distances.append((float(distance), i))
    return sorted(distances)


@pytest.mark.parametrize("metric", ["L2", "cosine"])
@pytest.mark.parametrize("block", [1 << 30, 1])
def test_neighbors_matches_reference(
    metric: str, block: int, tiny: Network, scan: Scan, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.techniques.dataset.neighbors.BLOCK_BYTES", block)
    last = Run(neighbors(tiny, scan, [3, 17], k=6, metric=metric)).run()
    spaces = {"pixels": images.reshape(20, -1), "features": scan.features()}
    for name, rows in spaces.items():
        agreement = []
        for m, query in enumerate((3, 17)):
            expected = reference_neighbors(rows, rows[query].astype(np.float64), metric, query)[:6]
            assert last.arrays[name][m].tolist() == [i for _, i in expected]
            assert np.allclose(last.arrays[f"{name} distance"][m], [d for d, _ in expected], atol=1e-6)
            agreement += [i % 3 == query % 3 for _, i in expected]
        assert last.scalars[f"{name} agreement"] == pytest.approx(np.mean(agreement))


def test_neighbors_batch_of_queries_matches_single_queries(tiny: Network, scan: Scan) -> None:
    together = Run(neighbors(tiny, scan, range(20), k=4)).run().arrays
    for query in range(20):
        alone = Run(neighbors(tiny, scan, query, k=4)).run().arrays
        assert together["query"][query] == alone["query"][0] == query
        for name in ("pixels", "features"):
            assert together[name][query].tolist() == alone[name][0].tolist()


def test_neighbors_of_external_image_may_include_every_image(tiny: Network, scan: Scan, images: np.ndarray) -> None:
    last = Run(neighbors(tiny, scan, images[7], k=2)).run()
    assert last.arrays["pixels"][0, 0] == last.arrays["features"][0, 0] == 7
    assert last.arrays["pixels distance"][0, 0] == 0
    assert last.arrays["query"].tolist() == [-1]
    assert last.arrays["features distance"][0, 0] < 1e-5
    assert not last.scalars


def test_neighbors_at_equal_distance_are_in_index_order(tiny: Network, tmp_path: Path) -> None:
    black, gray = np.zeros((16, 16, 3), np.float32), np.full((16, 16, 3), 0.5, np.float32)
    scan = Scan(tiny, [black, gray, black, gray, gray, black], cache=tmp_path)
    last = Run(neighbors(tiny, scan, [0, 4], k=4)).run().arrays
    assert last["pixels"].tolist() == [[2, 5, 1, 3], [1, 3, 0, 2]]


def test_neighbors_of_small_set_are_padded_with_minus_one(tiny: Network, images: np.ndarray, tmp_path: Path) -> None:
    last = Run(neighbors(tiny, Scan(tiny, images[:3], cache=tmp_path), 1, k=5)).run().arrays
    assert sorted(last["pixels"][0, :2]) == [0, 2]
    assert last["pixels"][0, 2:].tolist() == [-1, -1, -1]


def test_neighbors_yields_pixel_blocks_before_features(tiny: Network, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convis_widgets.techniques.dataset.neighbors.BLOCK_BYTES", 4 * 768 * 8)
    frames = [frame for frame in neighbors(tiny, scan, 0, k=3) if frame.arrays]
    assert len(frames) == 5 + 1
    assert [set(frame.arrays) >= {"features"} for frame in frames] == [False] * 5 + [True]
    assert [frame.step for frame in frames][:5] == [24, 28, 32, 36, 40]
    assert frames[-1].done


def test_neighbors_excludes_unreadable_image(tiny: Network, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"not an image")
    scan = Scan(tiny, folder, cache=tmp_path / "cache")
    last = Run(neighbors(tiny, scan, 0, k=4)).run().arrays
    assert sorted(last["pixels"][0, :3]) == [1, 3, 4]
    with pytest.raises(ValueError, match=r"\b2\b"):
        Run(neighbors(tiny, scan, 2)).run()


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (20, ValueError, r"\b20\b.*\b0\b.*\b19\b"),
        ([], ValueError, r"\b0\b.*\b19\b"),
        (-1, ValueError, r"-1\b"),
        ("nowhere.png", FileNotFoundError, r"nowhere\.png"),
        (np.zeros((8, 8, 5), np.float32), ValueError, r"\(8, 8, 5\)"),
        (True, TypeError, r"\bbool\b"),
    ],
)
def test_neighbors_rejects_invalid_query(
    query: object, error: type[Exception], message: str, tiny: Network, scan: Scan
) -> None:
    with pytest.raises(error, match=message):
        Run(neighbors(tiny, scan, query)).run()


def test_neighbors_compares_arrays_at_their_own_size(tmp_path: Path) -> None:
    """8x8 digits are compared at 8x8, although the network input is larger."""
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)))
    digits = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    last = Run(neighbors(net, Scan(net, digits, cache=tmp_path), 5, k=3, space="pixels")).run().arrays
    expected = reference_neighbors(digits.reshape(12, -1) / 255, digits[5].ravel() / 255, "L2", 5)[:3]
    assert last["pixels"][0].tolist() == [i for _, i in expected]
    assert "features" not in last


def test_neighbors_features_separate_toyscape_classes_and_pixels_do_not(tmp_path: Path) -> None:
    scan = Scan(Network.demo(), demo.Toyscape(150, seed=6), layers=["conv1"], cache=tmp_path)
    last = Run(neighbors(scan.net, scan, range(150), k=5)).run().scalars
    assert last["features agreement"] > 0.8
    assert last["pixels agreement"] < 0.25


def test_neighbors_is_independent_of_query_block_size(tiny: Network, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Run(neighbors(tiny, scan, range(20), k=4)).run().arrays
    monkeypatch.setattr("convis_widgets.techniques.dataset.neighbors.QUERIES_PER_BLOCK", 3)
    parts = Run(neighbors(tiny, scan, range(20), k=4)).run().arrays
    assert all(np.array_equal(whole[name], parts[name]) for name in ("pixels", "features"))


@pytest.mark.parametrize("kind", ["array", "PIL image", "small array"])
def test_neighbors_query_is_preprocessed_like_images_of_set(kind: str, tiny: Network, tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (9, 1, 1, 3), dtype=np.uint8)
    small = np.broadcast_to(colors, (9, 8, 8, 3)).copy()  # the network takes 16x16
    scan = Scan(tiny, small, cache=tmp_path)
    large = Image.fromarray(small[4]).resize((80, 80), Image.Resampling.NEAREST)
    query = {"small array": small[4], "array": np.asarray(large), "PIL image": large}[kind]
    last = Run(neighbors(tiny, scan, query, k=9)).run().arrays
    assert last["pixels"][0, 0] == last["features"][0, 0] == 4
    if kind == "small array":
        assert last["pixels distance"][0, 0] == 0
        assert last["features distance"][0, 0] < 1e-5
    assert last["pixels distance"][0, 1] > 5 * last["pixels distance"][0, 0]


def test_neighbors_supports_gray_images(tiny_gray: Network, tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    scan = Scan(tiny_gray, small, cache=tmp_path)
    for query in (small[3], Image.fromarray(small[3]).convert("RGB")):
        last = Run(neighbors(tiny_gray, scan, query, k=2)).run().arrays
        assert last["pixels"][0, 0] == last["features"][0, 0] == 3


def test_neighbors_excludes_missing_file_from_pixels_only(tiny: Network, tmp_path: Path) -> None:
    folder = written(tmp_path / "images", 5)
    Run(Scan(tiny, folder, cache=tmp_path).frames()).run()
    scan = Scan(tiny, folder, cache=tmp_path)
    (folder / "2.png").unlink()
    last = Run(neighbors(tiny, scan, [0, 2], k=4)).run().arrays
    assert sorted(last["pixels"][0].tolist()) == [-1, 1, 3, 4]
    assert last["pixels"][1].tolist() == [-1] * 4
    assert sorted(last["features"][0].tolist()) == [1, 2, 3, 4]
    assert sorted(last["features"][1].tolist()) == [0, 1, 3, 4]


@pytest.mark.parametrize("query", [torch.tensor([0, 3]), np.array([0, 3]), (0, 3), range(0, 4, 3)])
def test_neighbors_accepts_indices_of_any_type(query: object, tiny: Network, scan: Scan) -> None:
    expected = Run(neighbors(tiny, scan, [0, 3])).run().arrays["features"]
    assert np.array_equal(Run(neighbors(tiny, scan, query)).run().arrays["features"], expected)
    for index in (torch.tensor(3), np.array(3), np.int64(3)):
        assert np.array_equal(Run(neighbors(tiny, scan, index)).run().arrays["features"], expected[1:])


@pytest.mark.parametrize("metric", ["L2", "cosine"])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_neighbors_puts_copies_in_order_of_index_for_any_number_of_queries(
    count: int, metric: str, tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.techniques.dataset.neighbors.BLOCK_BYTES", 17 * 8 * 768)  # several blocks
    images = np.random.default_rng(0).integers(1, 256, (5, 16, 16, 3), dtype=np.uint8)[np.arange(60) % 5]
    scan, queries = Scan(tiny, images, cache=tmp_path), list(range(count))
    last = Run(neighbors(tiny, scan, queries, k=20, metric=metric, space="pixels")).run()
    vectors = images.reshape(60, -1).astype(float)
    if metric == "cosine":
        vectors /= np.sqrt((vectors**2).sum(1, keepdims=True))
    kinds = np.arange(60) % 5
    for row, query in enumerate(queries):
        between = ((vectors[:5] - vectors[query]) ** 2).sum(1)  # in the order of the cosine distance too
        expected = sorted(set(range(60)) - {query}, key=lambda i: (between[kinds[i]], i))[:20]
        assert last.arrays["pixels"][row].tolist() == expected
    distances = last.arrays["pixels distance"]
    assert (distances[:, :11] <= 1e-7).all()
    assert (distances >= 0).all()
