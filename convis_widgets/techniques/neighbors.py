"""neighbors: which pictures are near, by their pixels and by what the network makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ..core import Frame, Knob, Network, Scan, Transform, pixel_rows, technique, to_bytes

BLOCK = 64 << 20  # bytes of a block of pictures or features
QUERIES = 512  # that are compared with a block at once
SPACES = ("pixels", "features")


@technique
def neighbors(
    net: Network,
    images: Any,
    query: Any,
    *,
    k: Annotated[int, Knob(1, 1024)] = 5,
    space: Annotated[str, Knob(choices=("both", *SPACES))] = "both",
    metric: Annotated[str, Knob(choices=("L2", "cosine"))] = "L2",
) -> Iterator[Frame]:
    """The nearest pictures of a set, in pixel space and in feature space: what is alike to the eye of a pixel counter, and
    what is alike to the network.

    Parameters
    ----------
    net : Network, module or name
    images : Scan, ImageSet or what makes one
        What was not looked at yet is looked at first, see `scan`.
    query : int, sequence of int, or picture
        Indices of pictures of the set, which are then not their own neighbors; or another picture, which is resized where
        those of the set would be.
    k : int
        How many; fewer if the set is smaller.
    space : str
        "pixels", an array's own and a photo's as the network sees them, "features" of the scan, or "both".
    metric : str
        "L2", the Euclidean distance, or "cosine", 1 less the cosine of the angle between two vectors.

    Yields
    ------
    Frame
        After every block of pictures; a step is a picture in one space. For m queries ``arrays["query"]`` (m,) are their
        indices, -1 for a picture that is none of the set. For each space ``arrays["pixels"]`` and ``["features"]`` (m, k)
        are the nearest so far, indices of pictures, -1 where there are fewer, and ``["pixels distance"]``,
        ``["features distance"]`` (m, k) how far they are. Of equally near ones the first of the set comes first; one that
        is `Scan.lost` is nobody's neighbor in pixels. Where query and neighbors have labels
        ``scalars["pixels agreement"]`` and ``["features agreement"]`` are the share of neighbors with the query's label.

    Raises
    ------
    ValueError, TypeError
        The query is no picture of the set, or none at all.

    References
    ----------
    A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep convolutional neural networks", 2012, Fig. 4.
    All distances are computed, none is estimated.
    """
    store = Scan.ensure(net, images)
    indices = _asked(store, query)
    spaces = SPACES if space == "both" else (space,)
    before = 0 if store.complete else len(store.images)
    more = len(store.images) * len(spaces)
    yield from store.frames(more)
    known = store.known
    if len(indices) and not np.isin(indices, known).all():
        raise ValueError(f"picture {int(np.setdiff1d(indices, known)[0])} could not be read; choose another one")
    labels = store.labels[indices] if len(indices) else np.full(1, -1)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    device = net.device if net.device.type != "mps" else torch.device("cpu")  # which has no double precision
    step = before
    for name in spaces:
        rows = _reader(store, name)
        queries = torch.from_numpy(rows(indices) if len(indices) else _rows_of(store, query, name)).to(device)
        best = torch.full((len(queries), k), torch.inf, device=device, dtype=torch.double)
        which = torch.full((len(queries), k), -1, device=device)
        for block in np.array_split(known, min(len(known), -(-len(known) * queries.shape[1] * 8 // BLOCK))):
            there = torch.from_numpy(block).to(device)
            others = _scaled(torch.from_numpy(rows(block)).to(device, torch.double), metric)
            for few in torch.arange(len(queries), device=device).split(QUERIES):
                distance = _distances(_scaled(queries[few].double(), metric), others, metric)
                if len(indices):  # no picture is its own neighbor
                    distance[torch.from_numpy(indices).to(device)[few, None] == there] = torch.inf
                nearest, order = torch.cat([best[few], distance], 1).sort(dim=1, stable=True)
                numbers = torch.cat([which[few], there.expand(len(few), -1)], 1).gather(1, order)
                best[few], which[few] = nearest[:, :k], numbers[:, :k]
            which[~best.isfinite()] = -1
            found[name] = best, which
            step += len(block)
            last = step - before == len(known) * len(spaces)
            scalars, arrays = _told(found, store, labels)
            arrays["query"] = indices if len(indices) else np.full(1, -1)
            yield Frame(before + more if last else step, before + more, done=last, scalars=scalars, arrays=arrays)


def _asked(store: Scan, query: Any) -> np.ndarray:
    """The indices of the pictures of the set that are asked about; none if it is another picture."""
    if isinstance(query, (np.ndarray, torch.Tensor)) and query.ndim < 2:
        query = query.tolist()
    numbers = query if isinstance(query, (list, tuple, range)) and np.ndim(query) == 1 else [query]
    if any(isinstance(number, bool) or not isinstance(number, (int, np.integer)) for number in numbers):
        store.net.transform.fit(query)
        return np.empty(0, np.int64)
    wrong = [int(number) for number in numbers if not 0 <= number < len(store.images)]
    if wrong or not len(numbers):
        what = f"there is no picture {wrong[0]}" if wrong else "there is no query"
        raise ValueError(f"{what}; give indices from 0 to {len(store.images) - 1}")
    return np.asarray(numbers, np.int64)


def _reader(store: Scan, space: str) -> Callable[[np.ndarray], np.ndarray]:
    if space == "features":
        return store.features
    own = store.images.pixels

    def rows(chosen: np.ndarray) -> np.ndarray:
        if own is not None:
            return pixel_rows(own[chosen])
        found = pixel_rows(np.stack([store.view(int(i)) for i in chosen]))
        found[[int(i) in store.lost for i in chosen]] = np.nan
        return found

    return rows


def _rows_of(store: Scan, query: Any, space: str) -> np.ndarray:
    """A picture that is none of the set, as a row."""
    own, transform = store.images.pixels, store.net.transform
    if space == "features":
        return store.look([transform.fit(query)])
    if own is None:
        return pixel_rows(to_bytes(transform.fit(query)[None]))
    if getattr(query, "shape", None) == own.shape[1:]:
        return pixel_rows(np.asarray(query)[None])
    return pixel_rows(Transform(own.shape[1:3], (*own.shape, 1)[3]).fit(query)[None])


def _scaled(rows: torch.Tensor, metric: str) -> torch.Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12) if metric == "cosine" else rows


def _distances(a: torch.Tensor, b: torch.Tensor, metric: str) -> torch.Tensor:
    """(m, n) distances of the rows of `a` from those of `b`, in double precision: few of them by differences, without any
    cancellation.
    """
    if metric == "cosine":
        return 1 - a @ b.T
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist" if len(a) <= 16 else "use_mm_for_euclid_dist")


def _told(
    found: dict[str, tuple[torch.Tensor, torch.Tensor]], store: Scan, labels: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    scalars, arrays = {}, {}
    for name, (best, which) in found.items():
        arrays[name], arrays[f"{name} distance"] = which.cpu().numpy(), best.float().cpu().numpy()
        theirs = store.labels[arrays[name]]
        counted = (arrays[name] >= 0) & (theirs >= 0) & (labels[:, None] >= 0)
        if counted.any():
            scalars[f"{name} agreement"] = float((theirs == labels[:, None])[counted].mean())
    return scalars, arrays
