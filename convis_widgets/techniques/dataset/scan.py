"""Scan technique: a whole image set through the network, once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from ...core.dataset.scan import DEFAULT_K, K_KNOB, Scan
from ...core.knob import Knob
from ...core.network.network import Network
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImagesLike


@technique(allow_tf32=True)
def scan(
    net: Network,
    images: ImagesLike,
    *,
    layers: str | Sequence[str] = "conv",
    k: Annotated[int, K_KNOB] = DEFAULT_K,
    one_per_image: Annotated[bool, Knob()] = True,
    feature_layer: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    client: Any = None,
) -> Iterator[Frame]:
    """Largest activations of every channel, and features of every image, in one pass over an image set.

    The results are stored on disk: ``Scan(net, images)`` with the same arguments opens them, and so do the techniques and
    widgets that need a scan. A scan that was stopped or killed resumes where it was.

    Parameters
    ----------
    net : Network, module or name
    images : ImageSet, anything that `ImageSet` accepts, or a Scan to resume
        A folder, a ``.npz`` file, a list, an array, a Toyscape or a torch Dataset. A Scan has its own parameters, which
        replace those given here.
    layers, k, one_per_image, feature_layer, cache, workers
        See `Scan`.
    client : dask.distributed.Client, optional
        Scan on its workers, a part of the images each (extra ``dask``). They must reach the files by the same paths. The
        result is the same; the part of a worker that dies is done by another one. Workers started by a Dask nanny return
        memory to the system at once (MALLOC_TRIM_THRESHOLD_), which makes them a quarter slower; to avoid this, set
        ``dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}})`` before they start.

    Yields
    ------
    Frame
        After every batch, or after every part of a Dask worker; a step is an image:

        - ``scalars["images"]``: number of images scanned
        - ``scalars["skipped"]``: number of these that could not be read

    Raises
    ------
    ValueError
        There is no such layer; no image can be read; the network's scores are not finite. Earlier results are kept.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, section 4: the nine
    largest activations of a map over a dataset.

    Examples
    --------
    >>> from convis_widgets import Network, Run, Scan, demo, scan
    >>> net = Network.demo()
    >>> last = Run(scan(net, demo.Toyscape(20), layers="conv1", k=5)).run()
    >>> dict(last.scalars)
    {'images': 20, 'skipped': 0}
    >>> Scan(net, demo.Toyscape(20), layers="conv1", k=5).complete
    True
    """
    if not isinstance(images, Scan):
        images = Scan(
            net,
            images,
            layers=layers,
            k=k,
            one_per_image=one_per_image,
            feature_layer=feature_layer,
            cache=cache,
            workers=workers,
        )
    yield from Scan.ensure(net, images).frames(client=client)
