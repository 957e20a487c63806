"""Neighbors: the most similar images of a set, by their pixels and by the features of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from ...core.dataset.scan import Scan
from ...core.knob import Knob
from ...core.network.images import flatten_pixels, to_uint8
from ...core.network.network import Network
from ...core.network.transform import Transform
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike, ImagesLike

BLOCK_BYTES = 64 << 20  # size of a block of vectors in double precision
QUERIES_PER_BLOCK = 512  # queries compared with a block at once
SPACES = ("pixels", "features")


@technique(allow_tf32=True)
def neighbors(
    net: Network,
    images: ImagesLike,
    query: int | Sequence[int] | ImageLike,
    *,
    k: Annotated[int, Knob(1, 1024)] = 5,
    space: Annotated[str, Knob(choices=("both", *SPACES))] = "both",
    metric: Annotated[str, Knob(choices=("L2", "cosine"))] = "L2",
) -> Iterator[Frame]:
    """Nearest images of a set in pixel space and in feature space.

    Parameters
    ----------
    net : Network, module or name
    images : Scan, ImageSet, or anything that `ImageSet` accepts
        Images that have not been scanned yet are scanned first, see `scan`.
    query : int, sequence of int, or image
        Indices of images of the set, which are not their own neighbors; or another image, resized as those of the set.
    k : int
        Number of neighbors.
    space : str
        "pixels", those of an array as stored, otherwise those of the network's input; "features" of the scan; or "both".
    metric : str
        "L2", the Euclidean distance, or "cosine", 1 - cosine of the angle between two vectors.

    Yields
    ------
    Frame
        After the scan, one after every block of images; a step is an image in one space. For m queries:

        - ``arrays["query"]`` (m,): indices of the queries, -1 for an image that is not in the set
        - ``arrays["pixels"]``, ``arrays["features"]`` (m, k): indices of the nearest images so far, -1 where there are fewer
          than k. Ties go to the lower index, whatever the number of queries. Images in `Scan.missing` have no distance in
          pixel space.
        - ``arrays["pixels distance"]``, ``arrays["features distance"]`` (m, k)
        - ``scalars["pixels agreement"]``, ``scalars["features agreement"]``, in [0, 1]: fraction of neighbors with the label
          of their query, where both have labels

    Raises
    ------
    ValueError, TypeError
        The query is not an index of an image of the set and not an image, or the image could not be read.

    References
    ----------
    A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep convolutional neural networks", 2012, Fig. 4.
    The search is exact.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, neighbors
    >>> net = Network.demo()
    >>> last = Run(neighbors(net, demo.Toyscape(20), [0, 7], k=3)).run()
    >>> last.arrays["pixels"].shape, last.arrays["features"].shape
    ((2, 3), (2, 3))
    """
    scan = Scan.ensure(net, images)
    query_indices = _query_indices(scan, query)
    in_set = len(query_indices) > 0
    spaces = SPACES if space == "both" else (space,)
    scan_steps = 0 if scan.complete else len(scan.images)
    own_steps = len(scan.images) * len(spaces)
    yield from scan.frames(own_steps)
    valid = scan.valid
    if in_set and not np.isin(query_indices, valid).all():
        raise ValueError(f"image {int(np.setdiff1d(query_indices, valid)[0])} could not be read; choose another one")
    query_labels = scan.labels[query_indices] if in_set else np.full(1, -1)
    results: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    device = net.device if net.device.type != "mps" else torch.device("cpu")  # MPS has no double precision
    own_step = 0
    for name in spaces:
        get_vectors = _vector_getter(scan, name)
        queries = torch.from_numpy(get_vectors(query_indices) if in_set else _query_vector(scan, query, name)).to(device)
        best_distances = torch.full((len(queries), k), torch.inf, device=device, dtype=torch.double)
        best_images = torch.full((len(queries), k), -1, device=device)
        for block in np.array_split(valid, min(len(valid), -(-len(valid) * queries.shape[1] * 8 // BLOCK_BYTES))):
            block_images = torch.from_numpy(block).to(device)
            vectors = _normalize(torch.from_numpy(get_vectors(block)).to(device, torch.double), metric)
            for chunk in torch.arange(len(queries), device=device).split(QUERIES_PER_BLOCK):
                distances = _distances(_normalize(queries[chunk].double(), metric), vectors, metric, k + 1)
                if in_set:  # an image is not its own neighbor
                    is_self = torch.from_numpy(query_indices).to(device)[chunk, None] == block_images
                    distances[is_self] = torch.inf
                nearest, order = torch.cat([best_distances[chunk], distances], 1).sort(dim=1, stable=True)
                candidates = torch.cat([best_images[chunk], block_images.expand(len(chunk), -1)], 1)
                best_distances[chunk], best_images[chunk] = nearest[:, :k], candidates.gather(1, order)[:, :k]
            best_images[~best_distances.isfinite()] = -1
            results[name] = best_distances, best_images
            own_step += len(block)
            done = own_step == len(valid) * len(spaces)
            scalars, arrays = _frame_contents(results, scan, query_labels)
            arrays["query"] = query_indices if in_set else np.full(1, -1)
            step, total = scan_steps + (own_steps if done else own_step), scan_steps + own_steps
            yield Frame(step, total, done=done, scalars=scalars, arrays=arrays)


def _query_indices(scan: Scan, query: Any) -> np.ndarray:
    """Indices of the queries in the set; empty if the query is another image."""
    if isinstance(query, (np.ndarray, torch.Tensor)) and query.ndim < 2:
        query = query.tolist()
    indices = query if isinstance(query, (list, tuple, range)) and np.ndim(query) == 1 else [query]
    if any(isinstance(index, bool) or not isinstance(index, (int, np.integer)) for index in indices):
        scan.net.transform.resized_image(query)  # raises unless it is an image
        return np.empty(0, np.int64)
    invalid = [int(index) for index in indices if not 0 <= index < len(scan.images)]
    if invalid or not len(indices):
        what = f"there is no image {invalid[0]}" if invalid else "there is no query"
        raise ValueError(f"{what}; give indices from 0 to {len(scan.images) - 1}")
    return np.asarray(indices, np.int64)


def _vector_getter(scan: Scan, space: str) -> Callable[[np.ndarray], np.ndarray]:
    """Function that returns the vectors (n, D) of images by their indices."""
    if space == "features":
        return scan.features
    array = scan.images.pixels

    def pixel_vectors(indices: np.ndarray) -> np.ndarray:
        if array is not None:
            return flatten_pixels(array[indices])
        vectors = flatten_pixels(np.stack([scan.image(int(i)) for i in indices]))
        vectors[[int(i) in scan.missing for i in indices]] = np.nan
        return vectors

    return pixel_vectors


def _query_vector(scan: Scan, query: Any, space: str) -> np.ndarray:
    """Vector (1, D) of an image that is not in the set."""
    array, transform = scan.images.pixels, scan.net.transform
    if space == "features":
        return scan.extract_features([transform.resized_image(query)])
    if array is None:
        return flatten_pixels(to_uint8(transform.resized_image(query)[None]))
    if getattr(query, "shape", None) == array.shape[1:]:
        return flatten_pixels(np.asarray(query)[None])
    height, width, channels = (*array.shape[1:], 1)[:3]
    return flatten_pixels(Transform((height, width), channels).resized_image(query)[None])


def _normalize(vectors: torch.Tensor, metric: str) -> torch.Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12) if metric == "cosine" else vectors


def _distances(a: torch.Tensor, b: torch.Tensor, metric: str, count: int) -> torch.Tensor:
    """Distances (m, n) between vectors (m, D) and (n, D), exact for the smallest of each row; others may be inf.

    A matrix product finds them. Its rounding depends on m and n, and would put copies of an image in any order.

    Parameters
    ----------
    a, b : (m, D) and (n, D) double tensors
        Of length 1 for the cosine distance.
    metric : str
    count : int
        Number of the smallest distances of each row; those equal to the last of them are exact too.
    """
    products = a @ b.T
    lengths = a.norm(dim=1).square()[:, None] + b.norm(dim=1).square()
    approximate = 1 - products if metric == "cosine" else lengths - 2 * products  # or the square of the L2 distance
    approximate = approximate.nan_to_num(nan=torch.inf, posinf=torch.inf)
    rounding = 1e-10 * (lengths.nan_to_num() + 1)
    limit = approximate.kthvalue(min(count, len(b)), 1, keepdim=True).values + rounding.amax(1, keepdim=True)
    rows, columns = (approximate <= limit).nonzero(as_tuple=True)
    distances = torch.full_like(approximate, torch.inf)
    for part in torch.arange(len(rows), device=a.device).split(max(1, BLOCK_BYTES // (8 * max(1, a.shape[1])))):
        x, y = a[rows[part]], b[columns[part]]
        exact = (1 - (x * y).sum(1)).clamp(min=0) if metric == "cosine" else (x - y).norm(dim=1)
        distances[rows[part], columns[part]] = exact.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return distances


def _frame_contents(
    results: dict[str, tuple[torch.Tensor, torch.Tensor]], scan: Scan, query_labels: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scalars and arrays of a Frame from (distances, image indices) by space."""
    scalars, arrays = {}, {}
    for name, (distances, image_indices) in results.items():
        arrays[name], arrays[f"{name} distance"] = image_indices.cpu().numpy(), distances.float().cpu().numpy()
        labels = scan.labels[arrays[name]]
        labeled = (arrays[name] >= 0) & (labels >= 0) & (query_labels[:, None] >= 0)
        if labeled.any():
            scalars[f"{name} agreement"] = float((labels == query_labels[:, None])[labeled].mean())
    return scalars, arrays
