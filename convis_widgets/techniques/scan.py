"""scan: a whole set of pictures through the network, once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from ..core import Frame, Knob, Network, Scan, technique


@technique
def scan(
    net: Network,
    images: Any,
    *,
    layers: str | Sequence[str] = "conv",
    k: Annotated[int, Knob(1, 1024)] = 16,
    one_per_image: Annotated[bool, Knob()] = True,
    features: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    client: Any = None,
) -> Iterator[Frame]:
    """What excites every channel of the network most, and every picture's features: in one pass over a set of pictures.

    The result is a `Scan` on disk: ``Scan(net, images)`` with the same words opens it, and so does all that needs one. A
    scan that was stopped, or killed, goes on where it was.

    Parameters
    ----------
    net : Network, module or name
    images : ImageSet or what makes one, or a Scan to go on with
        A folder, a ``.npz`` file, a list, an array, a Toyscape or a torch Dataset. A Scan brings its own parameters.
    layers, k, one_per_image, features, cache, workers
        See `Scan`.
    client : dask.distributed.Client, optional
        Whose workers look at the pictures, each at a part of them (extra ``dask``). They need to reach the files by the same
        paths. The result is the same; what a worker that dies had in hand is done by another one. Workers that a Dask nanny
        has started give all memory back at once (MALLOC_TRIM_THRESHOLD_), which makes them a quarter slower;
        ``dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}})``, before they start, leaves that
        out.

    Yields
    ------
    Frame
        After every batch, or part of a worker; a step is a picture. ``scalars["images"]`` were looked at, ``["skipped"]``
        of them could not be read.

    Raises
    ------
    ValueError
        No such layer; no picture can be read; the network's scores are not finite. What was found before is kept.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, section 4: the nine
    strongest activations of a map among a data set.
    """
    words = {"layers": layers, "k": k, "one_per_image": one_per_image, "features": features}
    words |= {"cache": cache, "workers": workers}
    store = Scan.ensure(net, images) if isinstance(images, Scan) else Scan(net, images, **words)
    yield from store.frames(client=client)
