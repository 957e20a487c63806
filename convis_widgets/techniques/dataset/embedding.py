"""Embedding: an image set as a map, with similar images close together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ...core.dataset.grid import assign_to_grid
from ...core.dataset.scan import Scan
from ...core.errors import check_finite
from ...core.knob import Knob
from ...core.network.images import flatten_pixels
from ...core.network.network import Network
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.threads import thread_count
from ...core.types import ImagesLike

PCA_COMPONENTS = 50  # dimensions that t-SNE works on
EXAGGERATION_ITERATIONS = 250  # length of the early exaggeration phase
ROUNDING = 1e-6  # of the largest value; smaller differences are none
START_NOISE = 0.01  # of the standard deviation: equal images at the very same point would drive each other far apart
MAX_EXACT = 20_000  # points up to which nearest neighbors are exact
MAX_EXACT_DIVERGENCE = 2000  # ... and the divergence


@technique(allow_tf32=True)
def embedding(
    net: Network,
    images: ImagesLike,
    *,
    method: Annotated[str, Knob(choices=("tsne", "pca"))] = "tsne",
    space: Annotated[str, Knob(choices=("features", "pixels"))] = "features",
    perplexity: Annotated[float, Knob(2, 200)] = 30.0,
    iterations: Annotated[int, Knob(1, 10_000)] = 750,
    seed: Annotated[int, Knob(0, 2**32 - 1)] = 0,
) -> Iterator[Frame]:
    """Map of an image set: one point per image, close to those of similar images.

    Parameters
    ----------
    net : Network, module or name
    images : Scan, ImageSet, or anything that `ImageSet` accepts
        Images that have not been scanned yet are scanned first, see `scan`.
    method : str
        "pca", the two directions of largest variance, or "tsne", which starts there and preserves neighborhoods. If all
        images are equal, all points are 0.
    space : str
        What is compared: "features" of the scan, or "pixels", those of an array as stored, otherwise those of thumbnails.
    perplexity : float
        Effective number of neighbors of a point, at most a third of the points.
    iterations : int
        Iterations of t-SNE.
    seed : int

    Yields
    ------
    Frame
        After the scan, the principal components, then t-SNE every few iterations. Unreadable images are left out:

        - ``arrays["points"]`` (n, 2), float32
        - ``arrays["images"]`` (n,): image index of each point
        - ``arrays["grid"]`` (n, 2), in the last Frame: column and row of each point on a regular grid, see `assign_to_grid`
        - ``scalars["explained"]``, in [0, 1]: fraction of the variance along the two principal components
        - ``scalars["divergence"]``: Kullback-Leibler divergence of t-SNE, exact up to 2,000 images; of more, the estimate of
          openTSNE, updated every 50 iterations

    Raises
    ------
    ValueError
        There are fewer than four images, or their features are not finite.

    References
    ----------
    L. van der Maaten, G. Hinton, "Visualizing data using t-SNE", 2008. Computed by openTSNE (P. Policar, M. Strazar, B.
    Zupan, 2024) on 50 principal components, with the learning rate of A. Belkina et al., 2019, and an early exaggeration of
    12 for the first 250 iterations, or the first third if there are fewer than 750. Noise of 1 % of its
    standard deviation is added to the start, so that equal images do not start at the very same point.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, embedding
    >>> net = Network.demo()
    >>> last = Run(embedding(net, demo.Toyscape(20), method="pca")).run()
    >>> last.arrays["points"].shape, last.arrays["grid"].shape
    ((20, 2), (20, 2))
    """
    from sklearn.decomposition import PCA

    scan = Scan.ensure(net, images)
    scan_steps = 0 if scan.complete else len(scan.images)
    own_steps = 1 + (iterations if method == "tsne" else 0)
    yield from scan.frames(own_steps)
    valid = scan.valid
    if len(valid) < 4:
        raise ValueError(f"a map needs four images or more, and {scan.images.name} has {len(valid)}")
    vectors = scan.features(valid) if space == "features" else _pixel_vectors(scan, valid)
    check_finite(torch.from_numpy(vectors), f"the {space} of {scan.images.name} by {net.name}")
    are_equal = bool(np.ptp(vectors, axis=0).max() <= ROUNDING * np.abs(vectors).max())
    if are_equal:
        reduced, explained = np.zeros((len(vectors), 2)), 1.0
    else:
        pca = PCA(min(PCA_COMPONENTS, *vectors.shape), random_state=seed)
        reduced = pca.fit_transform(vectors).astype(np.float64)
        reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
        rounding = ROUNDING * np.abs(reduced).max()
        reduced = np.round(reduced / rounding) * rounding  # otherwise t-SNE arranges copies by their rounding errors
        explained = float(pca.explained_variance_ratio_[:2].sum())
    total = scan_steps + own_steps

    def make_frame(points: np.ndarray, step: int, done: bool, divergence: float | None = None) -> Frame:
        scalars = {"explained": explained, **({} if divergence is None else {"divergence": float(divergence)})}
        grid = {"grid": assign_to_grid(points)} if done else {}
        arrays = {"points": points, "images": valid, **grid}
        return Frame(total if done else scan_steps + step, total, done=done, scalars=scalars, arrays=arrays)

    pca_only = method == "pca" or are_equal
    yield make_frame(reduced[:, :2].astype(np.float32), 1, pca_only)
    if pca_only:
        return
    tsne = _start_tsne(reduced, perplexity, seed)
    exaggerated = min(EXAGGERATION_ITERATIONS, iterations // 3)
    chunk = max(1, min(25, 50_000 // len(valid)))
    stops = [*range(chunk, exaggerated, chunk), exaggerated, *range(exaggerated + chunk, iterations, chunk), iterations]
    for start, stop in zip([0, *stops], stops, strict=False):
        if stop > start:
            exaggeration = 12 if stop <= exaggerated else 1
            tsne.optimize(stop - start, exaggeration=exaggeration, momentum=0.8, inplace=True)
        yield make_frame(np.asarray(tsne, np.float32), 1 + stop, stop == iterations, _divergence(tsne))


def _start_tsne(reduced: np.ndarray, perplexity: float, seed: int) -> Any:
    """A TSNEEmbedding before its first iteration, initialized by the principal components."""
    from openTSNE import TSNEEmbedding, affinity, initialization

    jobs, count = thread_count(), len(reduced)
    affinities = affinity.PerplexityBasedNN(
        reduced,
        perplexity=min(perplexity, (count - 1) / 3),
        method="exact" if count <= MAX_EXACT else "annoy",
        n_jobs=jobs,
        random_state=seed,
    )
    start = initialization.rescale(reduced[:, :2].copy(), inplace=True)
    initialization.jitter(start, inplace=True, scale=START_NOISE, random_state=seed)
    return TSNEEmbedding(start, affinities, negative_gradient_method="auto", n_jobs=jobs, random_state=seed)


def _divergence(tsne: Any) -> float:
    """Kullback-Leibler divergence of a TSNEEmbedding; the estimate of its optimizer is below 0 for many equal points."""
    points, similarities = np.asarray(tsne), tsne.affinities.P.tocoo()
    if len(points) > MAX_EXACT_DIVERGENCE:
        return max(0.0, float(tsne.kl_divergence))
    squares = (points**2).sum(1)
    distances = (squares[:, None] + squares - 2 * points @ points.T).clip(0)
    total = (1 / (1 + distances)).sum() - len(points)  # without the points themselves
    p, pairs = similarities.data, distances[similarities.row, similarities.col]
    positive = p > 0
    return max(0.0, float((p * np.log(np.where(positive, p * total * (1 + pairs), 1))).sum()))


def _pixel_vectors(scan: Scan, indices: np.ndarray) -> np.ndarray:
    array = scan.images.pixels
    return flatten_pixels(scan.thumbnails(indices) if array is None else array[indices])
