from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets import demo
from convis_widgets.core.dataset.grid import assign_to_grid
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.embedding import embedding
from convis_widgets.techniques.dataset.neighbors import neighbors


@pytest.fixture
def blobs() -> np.ndarray:
    """Three groups of similar images, as an array (60, 16, 16)."""
    rng = np.random.default_rng(3)
    kinds = rng.random((3, 16, 16))
    return np.clip(kinds[np.arange(60) % 3] + 0.1 * rng.standard_normal((60, 16, 16)), 0, 1).astype(np.float32)


@pytest.fixture
def scan(tiny: Network, blobs: np.ndarray, tmp_path: Path) -> Scan:
    return Scan(tiny, ImageSet(blobs, labels=[i % 3 for i in range(60)]), cache=tmp_path)


def test_embedding_pca_matches_covariance_eigenvectors(tiny: Network, scan: Scan, blobs: np.ndarray) -> None:
    last = Run(embedding(tiny, scan, method="pca", space="pixels")).run()
    centered = blobs.reshape(60, -1) - blobs.reshape(60, -1).mean(0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    expected = centered @ vectors[:, ::-1][:, :2]
    points = last.arrays["points"]
    for axis in (0, 1):
        sign = np.sign((points[:, axis] * expected[:, axis]).sum())
        assert np.allclose(points[:, axis], sign * expected[:, axis], atol=1e-3)
    assert last.scalars["explained"] == pytest.approx(values[-2:].sum() / values.sum(), rel=1e-3)


def test_embedding_tsne_places_similar_images_together(tiny: Network, scan: Scan) -> None:
    last = Run(embedding(tiny, scan, space="pixels", iterations=300, perplexity=10)).run()
    points, kinds = last.arrays["points"], np.arange(60) % 3
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (kinds[distance.argmin(1)] == kinds).all()


def test_embedding_tsne_starts_at_pca_and_changes_every_frame(tiny: Network, scan: Scan) -> None:
    frames = [frame for frame in embedding(tiny, scan, iterations=120) if frame.arrays]
    pca = Run(embedding(tiny, scan, method="pca")).run()
    assert np.array_equal(frames[0].arrays["points"], pca.arrays["points"])
    assert len(frames) > 4
    for before, after in itertools.pairwise(frames):
        assert not np.array_equal(before.arrays["points"], after.arrays["points"])
        assert ("grid" in after.arrays) == after.done
    divergences = [frame.scalars["divergence"] for frame in frames[1:]]
    assert divergences[-1] < divergences[0]


def test_embedding_is_deterministic_for_same_seed(tiny: Network, scan: Scan) -> None:
    once, again = (Run(embedding(tiny, scan, iterations=30, seed=4)).run().arrays["points"] for _ in range(2))
    assert np.array_equal(once, again)


def test_embedding_skips_unreadable_images(tiny: Network, blobs: np.ndarray, tmp_path: Path) -> None:
    images = [*blobs[:8]]
    images[3] = np.full((16, 16, 3), np.nan)
    last = Run(embedding(tiny, Scan(tiny, images, cache=tmp_path), iterations=20)).run()
    assert last.arrays["images"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert len(last.arrays["points"]) == len(last.arrays["grid"]) == 7


@pytest.mark.parametrize("iterations", [1, 2, 10, 31])
def test_embedding_supports_any_number_of_iterations(iterations: int, tiny: Network, scan: Scan) -> None:
    frames = list(embedding(tiny, scan, iterations=iterations))
    assert frames[-1].done
    assert frames[-1].step == frames[-1].total


def test_embedding_rejects_fewer_than_four_images(tiny: Network, blobs: np.ndarray, tmp_path: Path) -> None:
    for count in (1, 2, 3):
        with pytest.raises(ValueError, match=rf"(?i)(four|\b4\b).*\b{count}\b"):
            Run(embedding(tiny, Scan(tiny, blobs[:count], cache=tmp_path))).run()
    for count in (4, 5):
        last = Run(embedding(tiny, Scan(tiny, blobs[:count], cache=tmp_path), iterations=5)).run()
        assert np.isfinite(last.arrays["points"]).all()


def test_embedding_of_equal_images_is_finite(tiny: Network, tmp_path: Path) -> None:
    same = np.full((9, 16, 16, 3), 0.5, np.float32)
    last = Run(embedding(tiny, Scan(tiny, same, cache=tmp_path), iterations=20)).run()
    assert np.isfinite(last.arrays["points"]).all()
    assert len({tuple(cell) for cell in last.arrays["grid"]}) == 9


# -- grid layout ------------------------------------------------------------------------------------------------------------


def squared_displacement(points: np.ndarray, cells: np.ndarray, side: int) -> float:
    scaled = (points - points.min(0)) / np.ptp(points, axis=0) * (side - 1)
    return float(((scaled - cells) ** 2).sum())


def test_assign_to_grid_matches_best_permutation() -> None:
    points = np.random.default_rng(5).random((7, 2))
    placed = assign_to_grid(points)
    cells = [(i % 3, i // 3) for i in range(7)]
    best = min(squared_displacement(points, np.array(order), 3) for order in itertools.permutations(cells))
    assert squared_displacement(points, placed, 3) == pytest.approx(best)


@pytest.mark.parametrize("count", [1, 2, 5, 100, 2500])
def test_assign_to_grid_gives_every_point_its_own_cell(count: int) -> None:
    placed = assign_to_grid(np.random.default_rng(6).standard_normal((count, 2)).astype(np.float32))
    side = int(np.ceil(np.sqrt(count)))
    assert sorted(map(tuple, placed[:, ::-1])) == [(i // side, i % side) for i in range(count)]


def test_assign_to_grid_with_splitting_is_near_optimal(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(7).standard_normal((400, 2))
    best = squared_displacement(points, assign_to_grid(points), 20)
    monkeypatch.setattr("convis_widgets.core.dataset.grid.MAX_ASSIGNED", 60)
    assert squared_displacement(points, assign_to_grid(points), 20) < 1.5 * best


# -- expected results ------------------------------------------------------------------------------------------------------


def knn_accuracy(points: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Cross-validated accuracy of a k-nearest-neighbors classifier on the points."""
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    return float(cross_val_score(KNeighborsClassifier(k), points, labels, cv=5).mean())


def test_embedding_features_separate_toyscape_classes_and_pixels_do_not(tmp_path: Path) -> None:
    scan = Scan(Network.demo(), demo.Toyscape(200, seed=7), layers=["conv1"], cache=tmp_path)
    maps = {
        space: Run(embedding(scan.net, scan, space=space, iterations=300)).run().arrays["points"]
        for space in ("features", "pixels")
    }
    assert knn_accuracy(maps["features"], scan.labels) > 0.9
    assert knn_accuracy(maps["pixels"], scan.labels) < 0.4


def test_embedding_pixels_separate_handwritten_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = ImageSet((digits.images[:600] / 16).astype(np.float32), labels=digits.target[:600])
    scan = Scan(Network.demo(), images, layers=["conv1"], cache=tmp_path)
    points = Run(embedding(scan.net, scan, space="pixels", iterations=500)).run().arrays["points"]
    assert knn_accuracy(points, digits.target[:600]) > 0.9


@pytest.mark.parametrize("count", [4, 8, 30])
@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("space", ["features", "pixels"])
@pytest.mark.parametrize("kind", ["black", "noise"])
def test_embedding_puts_equal_images_at_one_point(
    count: int, method: str, space: str, kind: str, tiny: Network, tmp_path: Path
) -> None:
    image = np.zeros((16, 16, 3)) if kind == "black" else np.random.default_rng(0).random((16, 16, 3))
    scan = Scan(tiny, np.stack([image.astype(np.float32)] * count), cache=tmp_path)
    last = Run(embedding(tiny, scan, method=method, space=space, iterations=20)).run()
    assert last.done
    assert (last.step, last.scalars["explained"]) == (last.total, 1)
    assert (last.arrays["points"] == 0).all()
    assert len({tuple(cell) for cell in last.arrays["grid"]}) == count


def test_embedding_puts_two_groups_of_equal_images_apart(tiny: Network, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)
    scan = Scan(tiny, images[np.arange(12) % 2], cache=tmp_path)
    points = Run(embedding(tiny, scan, space="pixels", iterations=60)).run().arrays["points"]
    assert np.isfinite(points).all()
    separation = np.linalg.norm(points[0] - points[1])
    assert all(np.linalg.norm(points[i] - points[i % 2]) < separation for i in range(12))


# -- copies -----------------------------------------------------------------------------------------------------------------


def tsne_similarities(vectors: np.ndarray, perplexity: float) -> np.ndarray:
    """Reference: the joint probabilities (n, n) of van der Maaten and Hinton, by bisection of each point's precision."""
    squared = ((vectors[:, None] - vectors[None]) ** 2).sum(2).astype(float)
    conditional = np.zeros_like(squared)
    for i, row in enumerate(squared):
        others, low, high = np.delete(row, i), -60.0, 60.0
        for _ in range(100):
            middle = (low + high) / 2
            p = np.exp(-np.exp(middle) * (others - others.min()))
            p /= p.sum()
            entropy = -(p * np.log(np.where(p > 0, p, 1))).sum()
            low, high = (middle, high) if entropy > np.log(perplexity) else (low, middle)
        conditional[i, np.arange(len(row)) != i] = p
    return (conditional + conditional.T) / conditional.sum() / 2


def kl_divergence(similarities: np.ndarray, points: np.ndarray) -> float:
    """Kullback-Leibler divergence of a map, from all pairs of points."""
    q = 1 / (1 + ((points[:, None].astype(float) - points[None]) ** 2).sum(2))
    np.fill_diagonal(q, 0)
    q /= q.sum()
    positive = similarities > 0
    return float((similarities[positive] * np.log(similarities[positive] / q[positive])).sum())


COPIES = {
    "20 twice": np.arange(40) // 2,
    "19 equal and another": np.minimum(np.arange(20), 1),
    "5 times 20": np.arange(100) // 20,
    "20 copies among 60": np.minimum(np.arange(60), 40),
    "none": np.arange(40),
}


@pytest.mark.parametrize("name", COPIES)
def test_embedding_of_copies_is_as_good_as_exact_tsne(name: str, tiny: Network, tmp_path: Path) -> None:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    indices = COPIES[name]
    array = np.random.default_rng(0).random((100, 16, 16, 3)).astype(np.float32)[indices]
    scan, perplexity = Scan(tiny, array, cache=tmp_path), (len(array) - 1) / 3  # all points are neighbors
    frames = [f for f in embedding(tiny, scan, space="pixels", iterations=500, perplexity=perplexity) if f.arrays]
    vectors = array.reshape(len(array), -1).astype(float)
    similarities = tsne_similarities(vectors, perplexity)
    exact = kl_divergence(similarities, frames[-1].arrays["points"])
    start = PCA(2).fit_transform(vectors)
    tsne = TSNE(2, perplexity=perplexity, method="exact", init=start / start[:, 0].std() * 1e-4, max_iter=500)
    assert exact < 1.1 * kl_divergence(similarities, tsne.fit_transform(vectors)) + 0.02
    divergences = [frame.scalars["divergence"] for frame in frames[1:]]
    assert min(divergences) >= 0
    assert divergences[-1] == pytest.approx(exact, rel=0.3, abs=0.02)  # openTSNE finds other precisions than scikit-learn


def test_embedding_of_copies_is_the_same_when_repeated(tiny: Network, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((15, 16, 16, 3)).astype(np.float32)[np.arange(30) // 2]
    a, b = (Run(embedding(tiny, Scan(tiny, array, cache=tmp_path / n), iterations=60)).run().arrays for n in "ab")
    assert np.array_equal(a["points"], b["points"])
    assert np.array_equal(a["grid"], b["grid"])


class InfiniteFeatures(nn.Module):
    """The features of an image with a white corner are infinite, its scores are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x).mean((2, 3)).masked_fill(x[:, 0, :1, 0] > 0.999, torch.inf)
        return self.fc(features).nan_to_num(0, 0, 0)


def test_embedding_and_neighbors_of_infinite_features_are_not_those_of_equal_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, images = Network(InfiniteFeatures(), size=16), np.random.default_rng(0).random((6, 16, 16, 3)) / 2
    images[2] = 1
    scan = Scan(net, images, cache=tmp_path)
    with pytest.raises(ValueError, match="features.*InfiniteFeatures are not finite"):
        Run(embedding(net, scan, iterations=5)).run()
    arrays = Run(neighbors(net, scan, [0, 2], k=5, space="features")).run().arrays
    assert sorted(arrays["features"][0].tolist()) == [-1, 1, 3, 4, 5]
    assert arrays["features"][1].tolist() == [-1] * 5
