"""Scan: what a network makes of a whole set of pictures, collected in one pass and kept on disk.

For every channel of the chosen layers the strongest activations and where they were; for every picture its features, its
prediction and a thumbnail. The network's device holds the strongest so far and no more, so memory depends on the network
and k, never on the number of pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .cluster import examined
from .cpu import cores
from .errors import nearest
from .examine import Examiner, Part
from .frame import Frame
from .image_set import ImageSet
from .images import to_bytes
from .knobs import Knob
from .network import Network
from .reading import MANY
from .store import Store

FORMAT = 1  # of what is on disk
SAVED = 2.0  # seconds between two times that the state is written
KEPT = 256 << 20  # bytes of pictures that stay in memory once they were looked at
FOUND, TOP = ("labels", "predictions", "probabilities"), ("values", "images", "positions")  # of the state
USUAL = 16  # activations of each channel
K, WORKERS = Knob(1, 10_000, kinds=(int,)), Knob(0, 256, kinds=(int,))


@dataclass(frozen=True)
class Top:
    """The strongest activations of every channel of a layer, (C, k) arrays, the strongest first.

    Attributes
    ----------
    values : float32
        -inf where there are fewer than k.
    images : int64
        Index of the picture; -1 where there are fewer than k.
    rows, cols : int64
        Position in the layer's map.
    """

    values: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    cols: np.ndarray

    def count(self, channel: int) -> int:
        """How many activations of a channel there are, at most k."""
        return int((self.images[channel] >= 0).sum())

    @property
    def dead(self) -> np.ndarray:
        """Channels that are not above zero anywhere in any picture."""
        return np.flatnonzero((self.values[:, 0] <= 0) & (self.images[:, 0] >= 0))


class Scan:
    """A set of pictures seen by a network, as far as it was looked at; it goes on where it was, also after a crash.

    Parameters
    ----------
    net : Network, module or name
    images : ImageSet, or whatever makes one
    layers : str or sequence of str
        Names of layers; "conv" for all convolutions, "all" for everything that has maps.
    k : int
        How many activations are kept of each channel, if there are as many.
    one_per_image : bool
        Whether a picture counts once for a channel, with its strongest position. Otherwise neighbors of one spot, which see
        nearly the same pixels, may be all there is.
    features : str, optional
        The layer whose output, averaged over positions, is the feature vector; otherwise what goes into the last layer with
        parameters, averaged over positions where it has any.
    cache : path, optional
        The folder for results; ``CONVIS_CACHE`` or the user's cache folder otherwise. They are found again by the network's
        weights, the pictures and these parameters. Where nothing can be written they last as long as the Scan.
    workers : int, optional
        Processes that decode files. Otherwise none where the network keeps all cores busy itself, and in a notebook several
        beside a GPU for many files. In a script the main module needs its ``if __name__ == "__main__":``.

    Attributes
    ----------
    seen : int
        Pictures looked at, from the first on.
    skipped : dict of int to str
        Those that could not be read, and why.
    lost : dict of int to str
        Those whose files were there, and then were gone or changed when they were to be shown.
    signature : str
        Of the pictures, when the Scan was made.
    folder : Path
        Where the results are.
    kept : bool
        Whether they outlast the Scan.

    Raises
    ------
    ValueError
        There is no such layer, or it has no maps; k is no whole number from 1 to 10,000.
    """

    _open: ClassVar[weakref.WeakValueDictionary[tuple[int, str], Scan]] = weakref.WeakValueDictionary()

    def __init__(
        self,
        net: Any,
        images: Any,
        *,
        layers: str | Sequence[str] = "conv",
        k: int = USUAL,
        one_per_image: bool = True,
        features: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        workers: int | None = None,
    ) -> None:
        K.check("k", k)
        if not isinstance(one_per_image, bool):
            raise ValueError(f"one_per_image={one_per_image!r} should be True or False")
        images = images.images if isinstance(images, Scan) else images
        self.net, self.images = Network.ensure(net), ImageSet.ensure(images)
        self.layers, self.k, self.one_per_image = _chosen(self.net, layers), int(k), one_per_image
        self.features_of = _chosen(self.net, features)[0] if features is not None else None
        self.signature, self._weights = self.images.signature(), _checksum(self.net)
        self._stamps = [self.images.stamp(i) for i in range(len(self.images))] if self.images.of_files else []
        self.key, self._cache = self._key(), cache
        self.lost = dict[int, str]()
        if workers is None:
            # a process begins with the main module: a script that is not made for that would begin itself again
            notebook = not hasattr(sys.modules["__main__"], "__file__")
            idle = notebook and self.net.device.type == "cuda" and self.images.of_files and len(self.images) >= MANY
            workers = min(8, cores() - 1) if idle else 0
        WORKERS.check("workers", workers)
        if workers and not self.images.of_files:
            raise ValueError("workers decode files; leave workers= out for other pictures")
        words = self.layers, self.k, one_per_image, self.features_of, self._stamps
        self._examiner = Examiner(self.net, self.images, *words, workers)
        self._lock = threading.RLock()  # two may go on with one Scan
        self._pictures: OrderedDict[int, np.ndarray] = OrderedDict()
        self._begin()

    def _begin(self) -> None:
        """Go on from what is on disk, or begin anew."""
        self._store = Store(self._cache, self.key)
        self.folder, self.kept = self._store.folder, self._store.kept
        count = len(self.images)
        self.seen, self.skipped, self._width = 0, dict[int, str](), 0
        self.labels, self.predictions = (np.full(count, -1, np.int32) for _ in range(2))
        self.probabilities = np.full(count, np.nan, np.float32)
        self._examiner.forget()
        self._saved, self._on_disk = time.monotonic(), 0  # when, and how many of the pictures it holds
        self._true = True  # to what the pictures were when the Scan was made
        self._load()

    @classmethod
    def ensure(cls, net: Network, images: Any, k: int = 1) -> Scan:
        """A Scan as it is, anything else as a Scan of these pictures, of which there is one at a time.

        It keeps the usual number of activations, or k if that is more. ValueError if it is one of another network.
        """
        if not isinstance(images, cls):
            made = cls(net, images, k=max(k, USUAL))
            return cls._open.setdefault((id(made.net), str(made.folder)), made)
        if images.net is not net:
            raise ValueError(f"these pictures were scanned by {images.net.name}, not by this network; scan them with it")
        return images

    # -- what it has found -------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all pictures were looked at."""
        return self.seen == len(self.images)

    @property
    def known(self) -> np.ndarray:
        """Indices of the pictures that were looked at and could be read."""
        return np.setdiff1d(np.arange(self.seen), list(self.skipped))

    def home(self, layer: str) -> str:
        """The scanned layer where the channels of a layer have their strongest positions: itself, or one before a ReLU.

        ValueError if there is none.
        """
        wanted = self.net.layers[layer]
        if wanted.name in self._examiner.tops:
            return wanted.name
        scanned = {self.net.layers[name].value: name for name in self.layers}
        made_of = next((op.args[0] for op in self.net.graph.ops if wanted.value in op.outputs), None)
        if not wanted.kind.startswith("ReLU") or made_of not in scanned:
            raise ValueError(f"{wanted.name} was not scanned; {nearest(wanted.name, self.layers)}")
        return scanned[made_of]

    def top(self, layer: str) -> Top:
        """The strongest activations of a layer so far; ValueError if it was not scanned."""
        name = self.home(layer)
        values, images, positions = self._examiner.tops[name].arrays()
        width = self.net.layers[name].maps[2]
        return Top(values, images, positions // width, np.where(positions < 0, -1, positions % width))

    def features(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """The feature vectors (seen, D) or those of chosen pictures, float32; NaN where one could not be read."""
        return self._rows("features", np.float32, (self._width,), chosen)

    def thumbnails(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Small copies of the pictures (seen, h, w, 3), uint8, or of chosen ones; black where one could not be read."""
        return self._rows("thumbnails", np.uint8, (*self._examiner.thumbnail_size, 3), chosen)

    def look(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The feature vectors (n, D) of other pictures, (H, W, C) in [0, 1] each, as the network sees them."""
        return self._examiner.look(pictures)[0]

    def view(self, index: int) -> np.ndarray:
        """A picture as the network sees it, (H, W, C) uint8; those looked at last stay in memory.

        Gray if its file is gone or has changed since it was looked at: then it is one of `lost`.
        """
        picture = self._pictures.pop(index, None)
        if picture is None:
            picture = self._read(index)
        self._pictures[index] = picture
        while len(self._pictures) * picture.nbytes > KEPT:
            self._pictures.popitem(last=False)
        return picture

    def _read(self, index: int) -> np.ndarray:
        try:
            if self._stamps and self.images.stamp(index) != self._stamps[index] and self.images[index].exists():
                raise ValueError(f"{self.images.names[index]} has changed since it was looked at")
            return to_bytes(self.images.view(index, self.net.transform)[0])
        except Exception as error:  # noqa: BLE001 (also of a user's Dataset: the others can still be shown)
            self.lost[index] = str(error)
            return np.full((*self.net.transform.size, self.net.transform.channels), 128, np.uint8)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} could not be read" if self.skipped else ""
        return f"<Scan of {self.images.name} by {self.net.name}: {self.seen} of {len(self.images)} pictures{skipped}>"

    # -- going on ----------------------------------------------------------------------------------------------

    def frames(self, more: int = 0, client: Any = None) -> Iterator[Frame]:
        """Look at the pictures that are left; a Frame after each batch, at least one unless `more` steps are to follow.

        With a `dask.distributed.Client` its workers do that, a Frame after each of their shards. Where the results were
        deleted it begins anew. ValueError if the network's weights have changed.
        """
        with self._lock:
            self._check_weights()
            self._check_folder()
        if self.complete and not more:
            yield self._frame(0)
        try:
            if client is not None and not self.complete:
                for parts, tops in examined(client, self._examiner, self.seen):
                    self._take(parts, tops)
                    yield self._frame(more)
            while not self.complete:
                self.advance()
                yield self._frame(more)
        finally:  # stopped, or failed: what was found is kept
            with self._lock:
                self._examiner.reader.close()
                if self._on_disk < self.seen and self._true and self._check_folder():
                    self.save()

    def advance(self) -> None:
        """Look at one more batch of pictures. Which ones it holds depends on their number and the network only."""
        with self._lock:
            if not self.complete:  # somebody else may have been here
                batch = self._examiner.batch
                stop = min(self.seen - self.seen % batch + batch, len(self.images))
                if self._true and self._on_disk < self.seen and self._changed(self.seen, stop):
                    self.save()  # no more can be kept
                before = self.seen
                tops = {name: strongest.found for name, strongest in self._examiner.tops.items()}
                part = self._examiner.examine(self.seen, stop)
                try:
                    if self._check_folder():
                        self._record(part)
                except BaseException:
                    if self.seen == before:  # these pictures will be offered again
                        for name, strongest in self._examiner.tops.items():
                            strongest.found = tops[name]
                    raise

    def _changed(self, start: int, stop: int) -> bool:
        """Whether one of these files is no longer what it was when the Scan was made."""
        return any(self.images.stamp(i) != stamp for i, stamp in enumerate(self._stamps[start:stop], start))

    def _take(self, parts: list[Part], tops: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """What somebody else has found in the pictures that come next."""
        with self._lock:
            if self._check_folder() and parts[0].start == self.seen:  # if not, they were looked at here meanwhile
                for name, found in tops.items():
                    self._examiner.tops[name].merge(*found)
                for part in parts:
                    self._record(part)

    def _record(self, part: Part) -> None:
        count, places = part.stop - part.start, [i - part.start for i in part.indices]
        if part.indices:
            first, self._width = not self._width, part.features.shape[1]
            self.labels[part.indices], self.predictions[part.indices] = part.labels, part.predictions
            self.probabilities[part.indices] = part.probabilities
            if part.start and first:  # the pictures before these could not be read
                self._store.write("features", 0, np.full((part.start, self._width), np.nan, np.float32))
        if self._width:
            rows = np.full((count, self._width), np.nan, np.float32)
            small = np.zeros((count, *self._examiner.thumbnail_size, 3), np.uint8)
            if part.indices:
                rows[places], small[places] = part.features, part.thumbnails
            self._store.write("features", part.start, rows)
            self._store.write("thumbnails", part.start, small)
        self.skipped |= part.skipped
        self._true &= not part.changed
        if part.stop == len(self.images) and not self._width:
            raise ValueError(f"no picture of {self.images.name} could be read; {next(iter(self.skipped.values()))}")
        self.seen = part.stop
        if self.complete or time.monotonic() - self._saved > SAVED:
            self.save()

    def _check_folder(self) -> bool:
        """Whether what was found is still on disk; otherwise it is to be found again."""
        there = self._store.holds(self._sizes(self.seen))
        if not there:
            self._begin()
        return there

    def _sizes(self, seen: int) -> dict[str, int]:
        """How many bytes of results of so many pictures there are in each file."""
        rows = {"features": 4 * self._width, "thumbnails": 3 * math.prod(self._examiner.thumbnail_size)}
        return {name: seen * size for name, size in rows.items()} if self._width else {}

    def _check_weights(self) -> None:
        if _checksum(self.net) != self._weights:
            self._begin()  # what is on disk is of the old ones
            raise ValueError(f"the weights of {self.net.name} have changed since this scan was made; make a new one")

    def _frame(self, more: int) -> Frame:
        scalars = {"images": self.seen, "skipped": len(self.skipped)}
        return Frame(self.seen, len(self.images) + more, done=self.complete and not more, scalars=scalars)

    # -- on disk -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what was found so far, whole or not at all; ValueError if some of it is of other weights.

        What is there is kept if somebody else has seen more meanwhile, or if pictures have changed since the Scan was made.
        """
        self._check_weights()
        self._saved = time.monotonic()
        about = self._store.load("about")
        if not self._true or (about and json.loads(str(about["about"]))["seen"] > self.seen):
            return
        state: dict[str, Any] = {
            "about": json.dumps({"format": FORMAT, "seen": self.seen, "width": self._width}),
            "skipped": np.array([[str(i), why] for i, why in self.skipped.items()], dtype=np.str_).reshape(-1, 2),
        }
        state |= {name: getattr(self, name) for name in FOUND}
        for name, strongest in self._examiner.tops.items():
            for part, array in zip(TOP, strongest.arrays(), strict=True):
                state[f"{part} {name}"] = array
        self._store.save(state)
        self._on_disk = self.seen

    def _load(self) -> None:
        names = [f"{part} {name}" for part in TOP for name in self.layers]
        state = self._store.load("about", "skipped", *FOUND, *names)
        about = json.loads(str(state["about"])) if state else {}
        self._width = about.get("width", 0)
        if about.get("format") != FORMAT or not self._store.holds(self._sizes(about["seen"])):
            self._width = 0
            return
        self.seen = self._on_disk = about["seen"]
        self.skipped = {int(i): str(why) for i, why in state["skipped"]}
        for name in FOUND:
            setattr(self, name, state[name])
        for name in self.layers:
            self._examiner.tops[name].restore(*(state[f"{part} {name}"] for part in TOP))

    def _rows(self, name: str, dtype: Any, shape: tuple[int, ...], chosen: np.ndarray | None) -> np.ndarray:
        chosen = np.arange(self.seen) if chosen is None else np.asarray(chosen)
        rows = np.zeros((len(chosen), *shape), dtype)
        there = chosen < (self.seen if self._width else 0)
        if there.any():
            if not self._store.holds(self._sizes(self.seen)):
                raise FileNotFoundError(f"the results of this scan in {self.folder} were deleted; scan once more")
            rows[there] = self._store.rows(name, dtype, shape, chosen[there])
        return rows

    def _key(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        module = self.net.module
        digest.update(repr((FORMAT, type(module).__qualname__, str(module), self.net.transform, self.layers)).encode())
        digest.update(repr((self.k, self.one_per_image, self.features_of, self.signature)).encode())
        for op in self.net.graph.ops:  # what it computes is not only in its weights
            constants = [leaf for leaf in tree_leaves((op.args, op.kwargs)) if isinstance(leaf, (bool, int, float, str))]
            digest.update(repr((op.name, constants)).encode())
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _chosen(net: Network, layers: str | Sequence[str]) -> list[str]:
    named = [layers] if isinstance(layers, str) else layers if isinstance(layers, (list, tuple)) else [None]
    if not all(isinstance(name, str) for name in named):
        raise ValueError(f"{layers!r} names no layers; give a name or a list of names")
    if isinstance(layers, str) and layers in ("conv", "all"):
        convs = nn.modules.conv._ConvNd
        names = [one.name for one in net.layers if one.maps and (layers == "all" or isinstance(one.module, convs))]
    else:
        names = list(dict.fromkeys(net.layers[name].name for name in named))
        without = [name for name in names if net.layers[name].maps is None]
        if without:
            raise ValueError(f"{without[0]} has no maps; choose another layer")
    return names


def _checksum(net: Network) -> list[int]:
    """What tells whether the weights have changed, or their order, in a small part of the time of a forward pass."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for tensor in (*net.module.parameters(), *net.module.buffers()):
        flat = tensor.detach().contiguous().view(whole.get(tensor.element_size(), torch.uint8)).flatten()
        for columns in (61, 67):  # two primes: no reordering that anybody makes keeps both sums of columns
            rows = len(flat) // columns
            sums += [flat[: rows * columns].view(rows, columns).sum(0), flat[rows * columns :].sum()[None]]
    return torch.cat(sums).tolist() if sums else []
