"""embedding: a set of pictures as a map, where alike ones lie together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np

from ..core import Frame, Knob, Network, Scan, cores, pixel_rows, technique

COMPONENTS = 50  # principal ones that t-SNE begins from
EXAGGERATED = 250  # iterations in which clusters are pulled together
EXACT = 20_000  # points up to which the neighbors of all are found by comparing all
ASSIGNED = 1_000  # points that are put on a grid at once


@technique
def embedding(
    net: Network,
    images: Any,
    *,
    method: Annotated[str, Knob(choices=("tsne", "pca"))] = "tsne",
    space: Annotated[str, Knob(choices=("features", "pixels"))] = "features",
    perplexity: Annotated[float, Knob(2, 200)] = 30.0,
    iterations: Annotated[int, Knob(1, 10_000)] = 750,
    seed: Annotated[int, Knob(0, 2**32 - 1)] = 0,
) -> Iterator[Frame]:
    """A map of a set of pictures: a point for each, near to those of pictures that are alike.

    Parameters
    ----------
    net : Network, module or name
    images : Scan, ImageSet or what makes one
        What was not looked at yet is looked at first, see `scan`.
    method : str
        "pca", the two directions of largest variance, or "tsne", which begins there and keeps neighbors together. Pictures
        that are all alike lie in one place.
    space : str
        What is alike: "features" of the scan, or "pixels", an array's own, or else those of thumbnails.
    perplexity : float
        About how many neighbors a point minds. Larger than a third of the points is taken for a third.
    iterations : int
        Of t-SNE.
    seed : int

    Yields
    ------
    Frame
        The principal components, then t-SNE every few iterations. ``arrays["points"]`` (n, 2), float32, and
        ``arrays["images"]`` (n,), the index of each one's picture; those that could not be read are left out. The last one
        has ``arrays["grid"]`` (n, 2), whole numbers: column and row of each on a regular grid, see `on_grid`.
        ``scalars["explained"]`` is the share of variance along the two principal components, ``["divergence"]`` the last
        known Kullback-Leibler divergence of t-SNE.

    Raises
    ------
    ValueError
        There are fewer than four pictures.

    References
    ----------
    L. van der Maaten, G. Hinton, "Visualizing data using t-SNE", 2008. By openTSNE (P. Policar, M. Strazar, B. Zupan, 2024),
    after a reduction to 50 principal components, with the learning rate of A. Belkina et al., 2019, and an early
    exaggeration of 12 for the first 250 iterations, or the first third of fewer than 750.
    """
    from sklearn.decomposition import PCA

    store = Scan.ensure(net, images)
    before = 0 if store.complete else len(store.images)
    more = 1 + (iterations if method == "tsne" else 0)
    yield from store.frames(more)
    known = store.known
    if len(known) < 4:
        raise ValueError(f"a map needs four pictures or more, and {store.images.name} has {len(known)}")
    rows = store.features(known) if space == "features" else _pixels(store, known)
    alike = bool(np.ptp(rows, axis=0).max() <= 1e-6 * np.abs(rows).max())  # there is nothing but rounding to tell apart
    if alike:
        reduced, share = np.zeros((len(rows), 2)), 1.0
    else:
        pca = PCA(min(COMPONENTS, *rows.shape), random_state=seed)
        reduced = pca.fit_transform(rows).astype(np.float64)
        reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
        share = float(pca.explained_variance_ratio_[:2].sum())
    explained = {"explained": share}
    points = reduced[:, :2].astype(np.float32)
    last = method == "pca" or alike
    grid = {"grid": on_grid(points)} if last else {}
    arrays = {"points": points, "images": known, **grid}
    yield Frame(before + more if last else before + 1, before + more, done=last, scalars=explained, arrays=arrays)
    if last:
        return
    optimized = _begun(reduced, perplexity, seed)
    early = min(EXAGGERATED, iterations // 3)
    chunk = max(1, min(25, 50_000 // len(known)))
    stops = [*range(chunk, early, chunk), early, *range(early + chunk, iterations, chunk), iterations]
    for start, stop in zip([0, *stops], stops, strict=False):
        if stop > start:
            exaggeration = 12 if stop <= early else 1
            optimized.optimize(stop - start, exaggeration=exaggeration, momentum=0.8, inplace=True)
        done = stop == iterations
        points = np.asarray(optimized, np.float32)
        arrays = {"points": points, "images": known, **({"grid": on_grid(points)} if done else {})}
        measured = optimized.kl_divergence  # every 50 iterations
        scalars = explained if measured is None else {**explained, "divergence": float(measured)}
        yield Frame(before + 1 + stop, before + more, done=done, scalars=scalars, arrays=arrays)


def on_grid(points: np.ndarray) -> np.ndarray:
    """Points (n, 2) moved to the cells of a regular grid, (n, 2) columns and rows, so that they move little.

    The grid is about square, with no more empty cells than its last row may have. Up to 1,000 points the sum of squares of
    the ways is the smallest there is (linear assignment); more are first divided in halves, again and again.

    >>> on_grid(np.array([[0.9, 0.1], [0.1, 0.0], [0.0, 1.0], [1.0, 0.8]])).tolist()
    [[1, 0], [0, 0], [0, 1], [1, 1]]
    """
    count = len(points)
    side = math.ceil(math.sqrt(count))
    cells = np.stack([np.arange(count) % side, np.arange(count) // side], 1)
    low, span = points.min(0), np.ptp(points, axis=0)
    scaled = (points - low) / np.where(span > 0, span, 1) * (side - 1)
    placed = np.empty((count, 2), np.int64)
    _assign(scaled.astype(np.float64), cells, np.arange(count), np.arange(count), placed)
    return placed


def _assign(points: np.ndarray, cells: np.ndarray, which: np.ndarray, free: np.ndarray, placed: np.ndarray) -> None:
    from scipy.optimize import linear_sum_assignment

    if len(which) <= ASSIGNED:
        ways = ((points[which, None] - cells[None, free]) ** 2).sum(2)
        rows, columns = linear_sum_assignment(ways)
        placed[which[rows]] = cells[free[columns]]
        return
    axis = int(np.ptp(cells[free], axis=0).argmax())
    which = which[np.argsort(points[which, axis], kind="stable")]
    free = free[np.argsort(cells[free, axis], kind="stable")]
    half = len(which) // 2
    _assign(points, cells, which[:half], free[:half], placed)
    _assign(points, cells, which[half:], free[half:], placed)


def _begun(reduced: np.ndarray, perplexity: float, seed: int) -> Any:
    """t-SNE before its first iteration."""
    from openTSNE import TSNEEmbedding, affinity, initialization

    jobs, count = cores(), len(reduced)
    near = affinity.PerplexityBasedNN(
        reduced,
        perplexity=min(perplexity, (count - 1) / 3),
        method="exact" if count <= EXACT else "annoy",
        n_jobs=jobs,
        random_state=seed,
    )
    start = initialization.rescale(reduced[:, :2].copy(), inplace=True)
    return TSNEEmbedding(start, near, negative_gradient_method="auto", n_jobs=jobs, random_state=seed)


def _pixels(store: Scan, known: np.ndarray) -> np.ndarray:
    own = store.images.pixels
    return pixel_rows(store.thumbnails(known) if own is None else own[known])
