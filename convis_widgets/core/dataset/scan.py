"""Scan: the results of a network on a whole image set, collected in one pass and stored on disk.

For every channel of the chosen layers the largest activations and their positions; for every image its features, its
prediction and a thumbnail. The network's device holds the current largest activations only, so memory depends on the network
and k, not on the number of images.
"""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, ClassVar

import numpy as np

from ..errors import did_you_mean
from ..knob import Knob
from ..network.images import to_uint8
from ..network.network import Network
from ..runs.frame import Frame
from ..types import ImagesLike, NetworkLike
from .batch_collector import BatchCollector, BatchResult, get_map_shape, resolve_layers
from .dask_backend import ShardResult, scan_on_dask
from .fingerprint import scan_key, weights_checksum
from .image_batch import thumbnail_size
from .image_set import ImageSet
from .result_check import ResultCheck
from .result_store import ResultStore
from .row_files import RowFiles
from .top_k import TopActivations

FORMAT = 2  # version of the stored results
SAVE_PERIOD = 2.0  # seconds between two saves of the state
IMAGE_CACHE_BYTES = 256 << 20  # memory for the images used last
IMAGE_ARRAYS, TOP_ARRAYS = ("labels", "predictions", "probabilities"), ("values", "images", "positions")
DEFAULT_K = 16  # activations per channel
K_KNOB, WORKERS_KNOB = Knob(1, 10_000, types=(int,)), Knob(0, 256, types=(int, NoneType))


class Scan:
    """The results of a network on an image set, as far as it has been scanned. A scan resumes after a stop or a crash.

    Parameters
    ----------
    net : Network, module or name
    images : ImageSet, or anything that `ImageSet` accepts
    layers : str or sequence of str
        Layer names; "conv" for all convolutions, "all" for all layers with activation maps.
    k : int, 1 to 10,000
        Number of activations to keep per channel.
    one_per_image : bool
        Keep one activation per image and channel; otherwise the top k may be overlapping positions of one image.
    feature_layer : str, optional
        Layer whose output is the feature vector; default: the input of the last layer with parameters. Both are averaged
        over positions.
    cache : path, optional
        Folder for results; default: ``CONVIS_CACHE`` or the user's cache folder. Results are found again by a network that
        computes the same, the images and these parameters. If the folder is not writable, they last as long as the Scan.
    workers : int, 0 to 256, optional
        Number of processes that decode image files ahead of the network; only for files. Default: 0 on a CPU; on a GPU, as
        many as keep up with it, once it is known that they save more time than their start takes.

    Attributes
    ----------
    num_seen : int
        Number of images scanned so far, in order.
    skipped : dict of int to str
        Images that could not be read, and why.
    missing : dict of int to str
        Images whose files were deleted or changed after they were scanned, as far as `image` was asked for them.
    labels, predictions : (n,) int32 arrays
        Label and predicted class of every image; -1 where unknown.
    probabilities : (n,) float32 array
        Probability of the predicted class; NaN where unknown.
    fingerprint : str
        `ImageSet.fingerprint` when the Scan was created.
    folder : Path
        Folder of the results.
    persistent : bool
        Whether the results outlast the Scan.

    Raises
    ------
    ValueError
        There is no such layer, or it has no activation maps; k is not an integer from 1 to 10,000.

    Examples
    --------
    >>> from convis_widgets import Run, demo
    >>> scan = Scan("demo", demo.Toyscape(20), layers="conv1", k=5)
    >>> last = Run(scan.frames()).run()
    >>> scan.num_seen, scan.top("conv1").values.shape[1]
    (20, 5)
    """

    _open: ClassVar[weakref.WeakValueDictionary[tuple[int, str], Scan]] = weakref.WeakValueDictionary()

    def __init__(
        self,
        net: NetworkLike,
        images: ImagesLike,
        *,
        layers: str | Sequence[str] = "conv",
        k: int = DEFAULT_K,
        one_per_image: bool = True,
        feature_layer: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        workers: int | None = None,
    ) -> None:
        K_KNOB.check("k", k)
        if not isinstance(one_per_image, bool):
            raise ValueError(f"one_per_image={one_per_image!r} should be True or False")
        self.net = Network.ensure(net)
        self.images: ImageSet = images.images if isinstance(images, Scan) else ImageSet.ensure(images)
        self.layers, self.k, self.one_per_image = resolve_layers(self.net, layers), int(k), one_per_image
        self.feature_layer = resolve_layers(self.net, feature_layer)[0] if feature_layer is not None else None
        # before the key: what changes meanwhile is then noticed
        self._file_stamps, self._weights = self.images.file_stamps(), weights_checksum(self.net)
        self.fingerprint = self.images.fingerprint()
        parameters = (self.k, self.one_per_image, self.feature_layer, self.fingerprint)
        self.key, self._cache = scan_key(self.net, FORMAT, self.layers, parameters), cache
        self.missing = dict[int, str]()
        WORKERS_KNOB.check("workers", workers)
        if workers and not self.images.from_files:
            raise ValueError("workers decode files; leave workers= out for other images")
        self._collector = BatchCollector(
            self.net, self.images, self.layers, self.k, one_per_image, self.feature_layer, self._file_stamps, workers
        )
        self._result_check: ResultCheck | None = None
        self._lock = threading.RLock()  # two threads may continue the same Scan
        self._image_cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._load_or_restart()

    def _load_or_restart(self, *, check_all: bool = False) -> None:
        """Load the results on disk, or start without results; see `RowFiles.restore`."""
        self._store = ResultStore(self._cache, self.key)
        self.folder, self.persistent = self._store.folder, self._store.persistent
        count = len(self.images)
        self.num_seen, self.skipped = 0, dict[int, str]()
        self._rows = RowFiles(self.folder, count, thumbnail_size(self.net.transform))
        self.labels, self.predictions = (np.full(count, -1, np.int32) for _ in range(2))
        self.probabilities = np.full(count, np.nan, np.float32)
        self._collector.reset()
        self._save_time, self._num_saved = time.monotonic(), 0
        self._files_unchanged = True  # since the Scan was created
        self._load(check_all)

    @classmethod
    def ensure(cls, net: Network, images: ImagesLike, k: int = 1) -> Scan:
        """Return a Scan as it is, and convert anything else; an open Scan of the same images is reused.

        ValueError if it is a Scan by another network.

        Parameters
        ----------
        net : Network
        images : Scan, ImageSet, or anything that `ImageSet` accepts
        k : int
            Activations per channel of a new Scan, at least `DEFAULT_K`.
        """
        if not isinstance(images, cls):
            created = cls(net, images, k=max(k, DEFAULT_K))
            return cls._open.setdefault((id(created.net), str(created.folder)), created)
        if images.net is not net:
            raise ValueError(f"these images were scanned by {images.net.name}, not by this network; scan them with it")
        return images

    # -- results -----------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all images have been scanned."""
        return self.num_seen == len(self.images)

    @property
    def valid(self) -> np.ndarray:
        """Indices of the images that have been scanned and could be read."""
        return np.setdiff1d(np.arange(self.num_seen), list(self.skipped))

    def scanned_layer(self, layer: str) -> str:
        """Return the layer itself if it was scanned, or the scanned layer before a ReLU; ValueError if there is none."""
        requested = self.net.layers[layer]
        if requested.name in self._collector.top_k:
            return requested.name
        scanned = {self.net.layers[name].value: name for name in self.layers}
        relu_input = next((op.args[0] for op in self.net.graph.ops if requested.value in op.outputs), None)
        if not requested.kind.startswith("ReLU") or relu_input not in scanned:
            raise ValueError(f"{requested.name} was not scanned; {did_you_mean(requested.name, self.layers)}")
        return scanned[relu_input]

    def top(self, layer: str) -> TopActivations:
        """Return the largest activations of a layer so far; ValueError if it was not scanned."""
        name = self.scanned_layer(layer)
        values, images, positions = self._collector.top_k[name].arrays()
        _, _, width = get_map_shape(self.net, name)
        return TopActivations(values, images, positions // width, np.where(positions < 0, -1, positions % width))

    def features(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Return the feature vectors (num_seen, D) float32, or those of some images; NaN for skipped images."""
        return self._rows.read("features", self._indices(indices), self.num_seen)

    def thumbnails(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Return thumbnails (num_seen, h, w, 3) uint8, or those of some images; black for skipped images."""
        return self._rows.read("thumbnails", self._indices(indices), self.num_seen)

    def _indices(self, indices: np.ndarray | None) -> np.ndarray:
        """Indices of images; by default of those that have been scanned."""
        indices = np.arange(self.num_seen) if indices is None else np.asarray(indices, np.int64)
        invalid = indices[(indices < 0) | (indices >= len(self.images))]
        if len(invalid):
            raise IndexError(f"there is no image {invalid[0]}; give indices from 0 to {len(self.images) - 1}")
        return indices

    def extract_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Compute the feature vectors (n, D) of other images, each (H, W, C) in [0, 1], as the network sees them."""
        return self._collector.extract_features(images)[0]

    def image(self, index: int) -> np.ndarray:
        """Return an image as the network sees it, (H, W, C) uint8; the images used last stay in memory.

        Gray if its file was deleted or has changed since it was scanned; then it is added to `missing`.
        """
        image = self._image_cache.pop(index, None)
        if image is None:
            image = self._load_image(index)
        self._image_cache[index] = image
        while len(self._image_cache) * image.nbytes > IMAGE_CACHE_BYTES:
            self._image_cache.popitem(last=False)
        return image

    def _load_image(self, index: int) -> np.ndarray:
        try:
            stamps = self._file_stamps
            if stamps and self.images.file_stamp(index) != stamps[index] and self.images[index].exists():
                raise ValueError(f"{self.images.names[index]} has changed since it was scanned")
            return to_uint8(self.images.load(index, self.net.transform)[0])
        except Exception as error:  # noqa: BLE001 (also of a user's Dataset; other images can still be shown)
            self.missing[index] = str(error)
            return np.full((*self.net.transform.size, self.net.transform.channels), 128, np.uint8)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} could not be read" if self.skipped else ""
        return f"<Scan of {self.images.name} by {self.net.name}: {self.num_seen} of {len(self.images)} images{skipped}>"

    # -- scanning ----------------------------------------------------------------------------------------------

    def frames(self, more: int = 0, client: Any = None) -> Iterator[Frame]:
        """Scan the remaining images and yield a Frame after each batch.

        If the results were deleted or changed, the scan starts over. ValueError if the network's weights have changed.

        Parameters
        ----------
        more : int
            Number of steps that follow the scan. With 0 there is at least one Frame.
        client : dask.distributed.Client, optional
            Scan on its workers; a Frame after each of their shards.
        """
        with self._lock:
            self._check_weights()
            self._restart_if_deleted()
            if not self.complete:
                self._check()  # the last save may be that of a Run that is stopped, which cannot run the network
        frame: Frame | None = None
        try:
            if client is not None and not self.complete:
                for shard in scan_on_dask(client, self._collector, self.num_seen):
                    self._add_shard(shard)
                    yield (frame := self._frame(more))
            # another thread may scan the last images between two Frames of this one
            while not self.complete or not (more or (frame and frame.done)):
                self.step()
                yield (frame := self._frame(more))
        finally:  # also when stopped or failed
            with self._lock:
                self._collector.close()
                if self._num_saved < self.num_seen and self._files_unchanged and not self._restart_if_deleted():
                    self.save()

    def step(self) -> None:
        """Scan the next batch of images. Its size depends on the network and the number of images only."""
        with self._lock:
            if self.complete:  # another thread may have scanned the last batch
                return
            batch_size = self._collector.batch_size
            stop = min(self.num_seen - self.num_seen % batch_size + batch_size, len(self.images))
            if self._files_unchanged and self._num_saved < self.num_seen and self._have_changed(self.num_seen, stop):
                self.save()  # results from here on are not saved
            start = self.num_seen
            states = {name: top_k.state for name, top_k in self._collector.top_k.items()}
            result = self._collector.process_batch(start, stop)
            try:
                if not self._restart_if_deleted():
                    self._record(result)
            except BaseException:
                if self.num_seen == start:  # this batch will be processed again
                    for name, top_k in self._collector.top_k.items():
                        top_k.state = states[name]
                raise

    def _have_changed(self, start: int, stop: int) -> bool:
        """Whether one of these files has changed since the Scan was created."""
        return any(self.images.file_stamp(i) != stamp for i, stamp in enumerate(self._file_stamps[start:stop], start))

    def _add_shard(self, shard: ShardResult) -> None:
        """Add the results of a Dask worker for the next images."""
        results, top_k = shard
        with self._lock:
            # unless this process has scanned these images meanwhile
            if not self._restart_if_deleted() and results[0].start == self.num_seen:
                for name, arrays in top_k.items():
                    self._collector.top_k[name].merge(*arrays)
                for result in results:
                    self._record(result)

    def _record(self, result: BatchResult) -> None:
        if result.indices:
            self.labels[result.indices], self.predictions[result.indices] = result.labels, result.predictions
            self.probabilities[result.indices] = result.probabilities
        self._rows.write(result.start, result.stop, result.indices, result.features, result.thumbnails)
        self.skipped |= result.skipped
        self._files_unchanged &= not result.files_changed
        if result.stop == len(self.images) and not self._rows.width:
            raise ValueError(f"no image of {self.images.name} could be read; {next(iter(self.skipped.values()))}")
        self.num_seen = result.stop
        if self.complete or time.monotonic() - self._save_time > SAVE_PERIOD:
            self.save()

    def _restart_if_deleted(self) -> bool:
        """Start over if the results on disk were deleted or damaged; return whether they were."""
        deleted = not self.folder.is_dir() or not self._rows.covers(self.num_seen)
        if deleted:
            self._load_or_restart(check_all=True)
        return deleted

    def _check_weights(self) -> None:
        if weights_checksum(self.net) != self._weights:
            self._load_or_restart()  # the results on disk are those of the old weights
            raise ValueError(f"the weights of {self.net.name} have changed since this scan was created; create a new Scan")

    def _frame(self, more: int) -> Frame:
        scalars = {"images": self.num_seen, "skipped": len(self.skipped)}
        return Frame(self.num_seen, len(self.images) + more, done=self.complete and not more, scalars=scalars)

    # -- on disk -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save the results so far, completely or not at all; ValueError if the weights have changed.

        Nothing is saved if the results on disk cover more images, or if image files have changed since the Scan was created.
        """
        self._check_weights()
        self._save_time = time.monotonic()
        stored = self._store.load()
        if self._files_unchanged and self._num_stored(stored) <= self.num_seen:
            self._store.save(self._state())
            self._num_saved = self.num_seen

    def _state(self) -> dict[str, np.ndarray]:
        """All results but the rows of images, of which there are the checksums."""
        about = {"format": FORMAT, "seen": self.num_seen, "width": self._rows.width}
        skipped = np.array([[str(i), why] for i, why in self.skipped.items()], dtype=np.str_).reshape(-1, 2)
        state = {"about": np.array(json.dumps(about)), "skipped": skipped} | self._check().state()
        state |= {f"checksums {name}": sums for name, sums in self._rows.checksums.items()}
        state |= {name: getattr(self, name) for name in IMAGE_ARRAYS}
        for layer, top_k in self._collector.top_k.items():
            state |= {f"{part} {layer}": array for part, array in zip(TOP_ARRAYS, top_k.arrays(), strict=True)}
        return state

    def _load(self, check_all: bool) -> None:
        state = self._store.load()
        count = self._num_stored(state)
        if not count:
            return
        checksums = {name: state[f"checksums {name}"] for name in self._rows.checksums}
        width = json.loads(str(state["about"]))["width"]
        if not self._rows.restore(width, checksums, count, check_all=check_all):
            self._rows = RowFiles(self.folder, len(self.images), thumbnail_size(self.net.transform))
            return
        self.num_seen = self._num_saved = count
        self.skipped = {int(i): str(why) for i, why in state["skipped"]}
        self.labels, self.predictions, self.probabilities = (state[name] for name in IMAGE_ARRAYS)
        for layer in self.layers:
            self._collector.top_k[layer].restore(*(state[f"{part} {layer}"] for part in TOP_ARRAYS))

    def _num_stored(self, state: dict[str, np.ndarray]) -> int:
        """Number of images in a stored state; 0 if it has another format or is by a network that computes something else."""
        about = json.loads(str(state["about"])) if state else {}
        return about["seen"] if about.get("format") == FORMAT and self._check().agrees(state) else 0

    def _check(self) -> ResultCheck:
        """Made once, with the weights that the Scan was created for."""
        self._result_check = self._result_check or ResultCheck.take(self._collector)
        return self._result_check
