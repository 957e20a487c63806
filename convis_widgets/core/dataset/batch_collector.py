"""BatchCollector: processes an image set batch by batch, in this process for `Scan`, or on other machines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import check_finite
from ..network.batch_size import auto_batch_size, halve_if_needed
from ..network.network import Network
from ..network.trace import first_tensor, watch_modules
from .image_batch import ImageBatch
from .image_loader import ImageLoader
from .image_set import ImageSet
from .top_k import TopK


def resolve_layers(net: Network, layers: str | Sequence[str]) -> list[str]:
    """Resolve layer names, "conv" (all convolutions) or "all" to full names of layers with activation maps.

    Parameters
    ----------
    net : Network
    layers : str or list of str
        A layer name, a list of layer names, "conv" or "all".

    Raises
    ------
    ValueError
        There is no such layer, or it has no activation maps.
    """
    if isinstance(layers, str) and layers in ("conv", "all"):
        candidates = [layer for layer in net.layers if layer.map_shape]
        return [c.name for c in candidates if layers == "all" or isinstance(c.module, nn.modules.conv._ConvNd)]
    if not isinstance(layers, (str, list, tuple)) or not all(isinstance(name, str) for name in layers):
        raise ValueError(f"{layers!r} is not a layer name; give a name or a list of names")
    names: list[str] = [layers] if isinstance(layers, str) else list(layers)
    resolved = list(dict.fromkeys(net.layers[name].name for name in names))
    for name in resolved:
        get_map_shape(net, name)
    return resolved


def get_map_shape(net: Network, layer: str) -> tuple[int, int, int]:
    """Shape (C, h, w) of a layer's activation maps; ValueError if it has none.

    Parameters
    ----------
    net : Network
    layer : str
        Name of the layer.
    """
    shape = net.layers[layer].map_shape
    if shape is None:
        raise ValueError(f"{layer} has no activation maps; choose another layer")
    return shape


def _empty() -> np.ndarray:
    return np.empty((0, 0))


@dataclass(frozen=True)
class BatchResult:
    """Results for the images from `start` to `stop`, without the largest activations.

    Attributes
    ----------
    start, stop : int
    indices : list of int
        The m images that could be read.
    skipped : dict of int to str
        The other images, and why they could not be read.
    files_changed : bool
        Whether an image file has changed since the scan was created.
    features, predictions, probabilities, labels, thumbnails : arrays
        (m, D), (m,), (m,), (m,) and (m, h, w, 3).
    """

    start: int
    stop: int
    indices: list[int]
    skipped: dict[int, str]
    files_changed: bool
    features: np.ndarray = field(default_factory=_empty)
    predictions: np.ndarray = field(default_factory=_empty)
    probabilities: np.ndarray = field(default_factory=_empty)
    labels: np.ndarray = field(default_factory=_empty)
    thumbnails: np.ndarray = field(default_factory=_empty)


class BatchCollector:
    """Runs batches of an image set through a network and collects the largest activations of every channel.

    Parameters
    ----------
    net, images, layers, k, one_per_image, feature_layer, workers
        See `Scan`; `layers` and `feature_layer` are full names of layers with activation maps.
    file_stamps : list of bytes
        `ImageSet.file_stamp` of each image when the scan was created; empty for images that are not files.

    Attributes
    ----------
    top_k : dict of str to TopK
        By layer.
    batch_size : int
        Depends on the network and its device only.
    loader : ImageLoader
    """

    def __init__(
        self,
        net: Network,
        images: ImageSet,
        layers: list[str],
        k: int,
        one_per_image: bool,
        feature_layer: str | None,
        file_stamps: list[bytes],
        workers: int | None = 0,
    ) -> None:
        self.net, self.images, self.layers, self.k, self.one_per_image = net, images, layers, k, one_per_image
        self.feature_layer, self._file_stamps = feature_layer, file_stamps
        self.top_k: dict[str, TopK] = {}
        self.reset()
        self.batch_size = auto_batch_size(net, torch.empty(1, net.transform.channels, *net.transform.size))
        if workers is None and net.device.type == "cpu":
            workers = 0  # the network takes all cores
        self.loader = ImageLoader(images, net.transform, self.batch_size, workers)
        self._ahead: tuple[int, ImageBatch, torch.Tensor] | None = None  # the next batch, and its first image
        with_parameters = (c.name for c in reversed(net.graph.calls) if [*c.module.parameters(recurse=False)])
        self._last_layer = next(with_parameters, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments only, without results."""
        arguments = (self.net, self.images, self.layers, self.k, self.one_per_image, self.feature_layer, self._file_stamps)
        return BatchCollector, arguments

    def empty_copy(self) -> BatchCollector:
        """Return a collector with the same arguments, in this process, and without results."""
        make, arguments = self.__reduce__()
        return make(*arguments)

    def reset(self) -> None:
        """Forget all activations."""
        self.top_k = {}
        for name in self.layers:
            channels, height, width = get_map_shape(self.net, name)
            available = len(self.images) * (1 if self.one_per_image else height * width)
            k = min(self.k, available)
            self.top_k[name] = TopK((channels, height, width), k, self.one_per_image, self.net.device)

    def close(self) -> None:
        """End the worker processes and free the next batch."""
        self._ahead = None
        self.loader.close()

    def process_batch(self, start: int, stop: int) -> BatchResult:
        """Process the images from `start` to `stop`; if this fails or is stopped, `top_k` is unchanged.

        Parameters
        ----------
        start : int
            Index of the first image.
        stop : int
            Index after the last image, at most the number of images.
        """
        batch, pixels = self._load(start, stop)
        stamps = self._file_stamps
        changed = {i for i in range(start, stop) if stamps and self.images.file_stamp(i) != stamps[i]}
        skipped = {i: f"{self.images.names[i]}: {error}" for i, error in batch.errors.items()}
        skipped |= {i: f"{self.images.names[i]} has changed since the scan was created" for i in changed}
        if not changed.isdisjoint(batch.indices):
            batch = batch.without(changed)
            pixels = self.net.stack_images(batch.pixels)
        indices = batch.indices
        if not indices:
            return BatchResult(start, stop, indices, skipped, bool(changed))
        with self._unchanged_if_failed():
            outputs = self._forward_in_memory(pixels, indices)
            self._load_ahead(stop)
            results = self._read(*outputs)
        return BatchResult(start, stop, indices, skipped, bool(changed), *results, batch.labels, batch.thumbnails)

    def _load(self, start: int, stop: int) -> tuple[ImageBatch, torch.Tensor]:
        """A batch, and its pixels on the network's device."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == start:
            return ahead[1:]
        batch = self.loader.load(start, stop)
        return batch, self.net.stack_images(batch.pixels)

    def _load_ahead(self, start: int) -> None:
        """Copy the next batch to the device, if workers have decoded it, while a GPU computes this one."""
        if self.loader.is_ready(start):
            self._ahead = start, *self._load(start, min(start + self.batch_size, len(self.images)))

    def _forward_in_memory(self, pixels: torch.Tensor, indices: list[int]) -> tuple[torch.Tensor, ...]:
        """See `forward`; in parts where memory is short."""

        def forward(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with self._unchanged_if_failed():
                return self.forward(pixels[rows[0] : rows[-1] + 1], [indices[i] for i in rows])

        return halve_if_needed(forward, torch.arange(len(indices)))

    @contextlib.contextmanager
    def _unchanged_if_failed(self) -> Iterator[None]:
        """Restore `top_k` after an error, also when stopped: these images will be processed again."""
        before = {name: top_k.state for name, top_k in self.top_k.items()}
        try:
            yield
        except BaseException:
            for name, top_k in self.top_k.items():
                top_k.state = before[name]
            raise

    def extract_features(
        self, images: Sequence[np.ndarray], indices: Sequence[int] = ()
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the features, predicted classes and probabilities of images.

        Parameters
        ----------
        images : sequence of (H, W, C) arrays in [0, 1]
            As the network sees them.
        indices : sequence of int, optional
            Their indices in the image set; if given, `top_k` is updated with their activations.

        Returns
        -------
        features : (n, D) array
        predictions, probabilities : (n,) arrays
        """
        return self._read(*self.forward(self.net.stack_images(images), indices))

    def _read(self, features: torch.Tensor, p: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `extract_features`; waits for a GPU."""
        check_finite(p, f"the scores of {self.net.name}")
        values, classes = self.net.output.top(p, 1)
        return features.cpu().numpy(), classes[:, 0].cpu().numpy(), values[:, 0].cpu().numpy()

    def forward(self, pixels: torch.Tensor, indices: Sequence[int] = ()) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, D) and predictions (n, classes) of images, and the update of `top_k`; does not wait for a GPU.

        Parameters
        ----------
        pixels : (n, C, H, W) tensor in [0, 1]
        indices : sequence of int, optional
            See `extract_features`.
        """
        vectors: list[torch.Tensor] = []
        image_indices = torch.as_tensor(indices, device=self.net.device)

        def on_exit(name: str, _module: Any, output: Any) -> None:
            updates_top_k = name in self.top_k and len(indices) > 0
            tensor = first_tensor(output) if updates_top_k or name == self.feature_layer else None
            if tensor is None:
                return
            maps = self.net.as_maps(name, tensor).float()
            if updates_top_k:
                self.top_k[name].update(maps, image_indices)
            if name == self.feature_layer:
                vectors.append(maps.mean((2, 3)))

        def on_enter(name: str, args: tuple[Any, ...]) -> None:
            if self.feature_layer is None and name == self._last_layer and args and isinstance(args[0], torch.Tensor):
                vectors.append(_spatial_mean(self.net.layers[name].module, args[0].float()))

        with torch.no_grad(), watch_modules(self.net.module, on_exit, on_enter):
            p = self.net.predictions(pixels)
        # some modules drop the dimension of the batch before their last layer
        return vectors[-1] if vectors and vectors[-1].shape[:-1] == (len(p),) else p, p


def _spatial_mean(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Mean of a layer's input (N, ...) over its positions, if it has any, as vectors (N, D)."""
    if isinstance(layer, nn.Linear):  # channels are the last dimension, as for tokens
        return x.flatten(1, -2).mean(1) if x.ndim > 2 else x
    spatial_dims = {4: (2, 3), 3: (1,)}.get(x.ndim)
    return x.mean(spatial_dims) if spatial_dims else x.flatten(1)
