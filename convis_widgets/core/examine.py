"""Examiner: looks at the pictures of a set, a batch at a time; what `Scan` does in this process and on other machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .gradient import passes
from .image_set import ImageSet
from .images import to_bytes
from .network import Network
from .reading import Reader
from .strongest import Strongest
from .trace import first_tensor, watch

THUMBNAIL = 48  # pixels of the longer side


@dataclass(frozen=True)
class Part:
    """What was found in the pictures from `start` to `stop`, except for the strongest activations.

    Attributes
    ----------
    indices : list of int
        Those m that could be read; the rest is in `skipped`, with the reason.
    changed : bool
        Whether files were no longer what they were at the beginning.
    features, predictions, probabilities, labels, thumbnails : arrays
        (m, D), (m,), (m,), (m,) and (m, h, w, 3).
    """

    start: int
    stop: int
    indices: list[int]
    skipped: dict[int, str]
    changed: bool
    features: np.ndarray | None = None
    predictions: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    labels: list[int] | None = None
    thumbnails: np.ndarray | None = None


class Examiner:
    """Sees pictures of a set with a network, and remembers the strongest activations of every channel.

    Parameters
    ----------
    net, images, layers, k, one_per_image, features_of, workers
        As of `Scan`; `layers` and `features_of` are names of layers that have maps.
    stamps : list of bytes
        What each file was at the beginning; empty for pictures that are no files.

    Attributes
    ----------
    tops : dict of str to Strongest
        By layer.
    batch : int
        Pictures that are looked at together. It depends on the network and its device only.
    """

    def __init__(
        self,
        net: Network,
        images: ImageSet,
        layers: list[str],
        k: int,
        one_per_image: bool,
        features_of: str | None,
        stamps: list[bytes],
        workers: int = 0,
    ) -> None:
        self.net, self.images = net, images
        self._words = (layers, k, one_per_image, features_of, stamps)
        self.features_of = features_of
        self.forget()
        self.batch = passes(net, torch.empty(1, net.transform.channels, *net.transform.size))
        self.reader = Reader(images, net.transform, workers, self.batch)
        with_parameters = (c.name for c in reversed(net.graph.calls) if [*c.module.parameters(recurse=False)])
        self._last = next(with_parameters, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it goes without what it has found."""
        return Examiner, (self.net, self.images, *self._words)

    @property
    def thumbnail_size(self) -> tuple[int, int]:
        """Height and width of thumbnails."""
        height, width = self.net.transform.size
        scale = min(1.0, THUMBNAIL / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def forget(self) -> None:
        """Begin anew."""
        layers, k, one_per_image, *_ = self._words
        self.tops = {}
        for name in layers:
            channels, height, width = self.net.layers[name].maps
            most = len(self.images) * (1 if one_per_image else height * width)
            self.tops[name] = Strongest((channels, height, width), min(k, most), one_per_image, self.net.device)

    def examine(self, start: int, stop: int) -> Part:
        """Look at the pictures from `start` to `stop`; if that fails, or is stopped, nothing was seen."""
        read = dict(enumerate(self.reader.read(start, stop), start))
        stamps = self._words[-1]
        changed = [i for i in read if stamps and self.images.stamp(i) != stamps[i]]
        for i in changed:
            read[i] = f"{self.images.names[i]} has changed since the scan was begun"
        skipped = {i: item for i, item in read.items() if isinstance(item, str)}
        indices = [i for i in read if i not in skipped]
        if not indices:
            return Part(start, stop, indices, skipped, bool(changed))
        pictures, labels = map(list, zip(*(read[i] for i in indices), strict=True))
        before = {name: strongest.found for name, strongest in self.tops.items()}
        try:
            found = self.look(pictures, indices)
        except BaseException:  # also when it was stopped: these pictures will be offered again
            for name, strongest in self.tops.items():
                strongest.found = before[name]
            raise
        return Part(start, stop, indices, skipped, bool(changed), *found, labels, self._thumbnails(pictures))

    def look(self, pictures: Sequence[np.ndarray], indices: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (n, D), classes and probabilities of pictures as the network sees them, (H, W, C) each.

        With indices, the pictures are of the set, and their maps are offered to `tops`.
        """
        found: list[torch.Tensor] = []

        def left(name: str, _module: Any, output: Any) -> None:
            if name in self.tops and len(indices):
                self.tops[name].offer(self.net.as_maps(name, first_tensor(output)).float(), indices)
            if name == self.features_of:
                found.append(self.net.as_maps(name, first_tensor(output)).float().mean((2, 3)))

        def entered(name: str, args: tuple[Any, ...]) -> None:
            if self.features_of is None and name == self._last and args and isinstance(args[0], torch.Tensor):
                found.append(_averaged(self.net.layers[name].module, args[0].float()))

        with torch.no_grad(), watch(self.net.module, left, entered):
            p = self.net.probabilities(self.net.stack(pictures))
        if not bool(p.isfinite().all()):
            raise ValueError(f"the scores of {self.net.name} are not finite; its weights may have diverged")
        best = p.max(1)
        vectors = found[-1] if found else p
        return tuple(part.cpu().numpy() for part in (vectors, best.indices, best.values))

    def _thumbnails(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        size = self.thumbnail_size
        small = np.empty((len(pictures), *size, 3), np.uint8)
        for row, picture in zip(small, pictures, strict=True):
            pixels = to_bytes(picture)
            image = Image.fromarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]).convert("RGB")
            row[:] = image if size == pixels.shape[:2] else image.resize(size[::-1], Image.Resampling.BOX)
        return small


def _averaged(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What goes into a layer, (N, ...), as vectors (N, D): the mean over its positions, if it has any."""
    if isinstance(layer, nn.Linear):  # its channels are the last dimension, as those of tokens
        return x.flatten(1, -2).mean(1) if x.ndim > 2 else x
    positions = {4: (2, 3), 3: (1,)}.get(x.ndim)
    return x.mean(positions) if positions else x.flatten(1)
