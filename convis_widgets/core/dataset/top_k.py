"""TopK: the k largest activations of every channel over all images seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

MAX_GATHERED = 1 << 24  # values gathered at once
_SELECTING_DEVICES = ("cpu",)  # where it is faster to select first what is to be sorted; a GPU has to be waited for

State: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Values, image indices and positions, (C, k) each."""


@dataclass(frozen=True)
class TopActivations:
    """The largest activations of every channel of a layer, as (C, k) arrays in decreasing order.

    Attributes
    ----------
    values : float32
        -inf where there are fewer than k.
    images : int64
        Image indices; -1 where there are fewer than k.
    rows, cols : int64
        Positions in the activation map.
    """

    values: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    cols: np.ndarray

    def count(self, channel: int) -> int:
        """Number of activations of a channel, at most k."""
        return int((self.images[channel] >= 0).sum())

    @property
    def dead(self) -> np.ndarray:
        """Channels without an activation above zero in any image."""
        return np.flatnonzero((self.values[:, 0] <= 0) & (self.images[:, 0] >= 0))


class TopK:
    """The k largest activations of every channel of a layer, with image and position, on the network's device.

    Ties go to the lower image index, then to the lower row-major position, so the result does not depend on how the images
    are divided into batches.

    Parameters
    ----------
    shape : (C, h, w)
        Shape of the layer's activation maps.
    k : int
    one_per_image : bool
        Keep only the largest activation of each image.
    device : torch.device

    Attributes
    ----------
    state : tuple of tensors
        Values, image indices and positions, (C, k) each. Replaced as a whole, never modified.
    """

    def __init__(self, shape: tuple[int, int, int], k: int, one_per_image: bool, device: torch.device) -> None:
        self.k, self.max_per_image = k, 1 if one_per_image else k
        self.state: State = (
            torch.full((shape[0], k), -torch.inf, dtype=torch.float32, device=device),
            torch.full((shape[0], k), -1, device=device),
            torch.full((shape[0], k), -1, device=device),
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, image indices and positions, (C, k) each, in decreasing order; padded with -inf and -1."""
        values, images, positions = (part.cpu().numpy() for part in self.state)
        return values, images, positions

    def restore(self, values: np.ndarray, images: np.ndarray, positions: np.ndarray) -> None:
        """Set the state to the result of an earlier `arrays`.

        Parameters
        ----------
        values : (C, k) float32 array
            In decreasing order in each row; -inf where there are fewer than k.
        images : (C, k) int64 array
            Image indices; -1 where there are fewer than k.
        positions : (C, k) int64 array
            Row-major positions in the activation map; -1 where there are fewer than k.
        """
        arrays = zip((values, images, positions), self.state, strict=True)
        new_values, new_images, new_positions = (torch.from_numpy(array).to(old) for array, old in arrays)
        self.state = new_values, new_images, new_positions

    def merge(self, values: np.ndarray, images: np.ndarray, positions: np.ndarray) -> None:
        """Add the `arrays` of another TopK, whose image indices are larger than all seen here.

        Parameters
        ----------
        values : (C, k) float32 array
        images, positions : (C, k) int64 arrays
            See `restore`.
        """
        pairs = zip(self.state, (values, images, positions), strict=True)
        all_values, all_images, all_positions = (
            torch.cat([own, torch.from_numpy(other).to(own)], 1) for own, other in pairs
        )
        self.state = _keep_largest(all_values, all_images, all_positions, self.k)

    def update(self, maps: torch.Tensor, images: Sequence[int] | torch.Tensor) -> None:
        """Add a batch of activation maps.

        Parameters
        ----------
        maps : (N, C, h, w) tensor
        images : sequence of int, or tensor
            Image indices of the batch, increasing and larger than all before.
        """
        maps, indices = maps.flatten(2), torch.as_tensor(images, device=maps.device)
        update = self._update_candidates if maps.device.type in _SELECTING_DEVICES else self._update_all
        update(maps, indices)

    def _update_all(self, maps: torch.Tensor, indices: torch.Tensor) -> None:
        """Sort the largest activations of all maps (N, C, positions) into the state, without waiting for the device."""
        count, channels, positions = maps.shape
        k = min(self.max_per_image, positions)
        if k == 1:
            values, places = maps.max(2, keepdim=True)
            largest = values
        else:
            largest = maps.amax(2, keepdim=True)
            parts = maps.split(max(1, MAX_GATHERED // (count * positions)), 1)
            values, places = (torch.cat(part, 1) for part in zip(*(_k_largest(part, k) for part in parts), strict=True))
        values = values.masked_fill(largest.isnan(), -torch.inf)
        missing = values == -torch.inf
        new = values, indices.view(-1, 1, 1).expand_as(places).masked_fill(missing, -1), places.masked_fill(missing, -1)
        rows = (table.transpose(0, 1).reshape(channels, -1) for table in new)
        values, images, places = (torch.cat(pair, 1) for pair in zip(self.state, rows, strict=True))
        self.state = _keep_largest(values, images, places, self.k)

    def _update_candidates(self, maps: torch.Tensor, indices: torch.Tensor) -> None:
        """Sort the activations of the maps (N, C, positions) that exceed the state into it; after the first batches, few."""
        is_candidate = maps.amax(2) > self.state[0][:, -1]  # False for NaN
        image, channel = is_candidate.nonzero(as_tuple=True)
        if not len(image):
            return
        if self.max_per_image == 1:
            values, positions = _largest_per_map(maps, image, channel)
        else:
            values, positions = _k_largest_per_map(maps, image, channel, min(self.max_per_image, maps.shape[2]))
        # scatter into tables with one row per channel that has candidates; images in order from left to right
        channels = is_candidate.any(0).nonzero()[:, 0]
        row = torch.empty_like(is_candidate[0], dtype=torch.long)
        row[channels] = torch.arange(len(channels), device=maps.device)

        def extend(old: torch.Tensor, new: torch.Tensor, fill: float) -> torch.Tensor:
            table = torch.full((len(channels), len(maps), values.shape[1]), fill, dtype=new.dtype, device=maps.device)
            table[row[channel], image] = new
            return torch.cat([old[channels], table.flatten(1)], 1)

        old_values, old_images, old_positions = self.state
        largest = _keep_largest(
            extend(old_values, values, -torch.inf),
            extend(old_images, indices[image, None], -1),
            extend(old_positions, positions, -1),
            self.k,
        )
        new_values, new_images, new_positions = (old.clone() for old in self.state)  # other threads may read the state
        for whole, part in zip((new_values, new_images, new_positions), largest, strict=True):
            whole[channels] = part
        self.state = new_values, new_images, new_positions


def _keep_largest(values: torch.Tensor, images: torch.Tensor, positions: torch.Tensor, k: int) -> State:
    """Keep the k largest values of each row of tables (C, n); ties go to the left."""
    order = _descending_order(values, k)
    return values.gather(1, order), images.gather(1, order), positions.gather(1, order)


def _descending_order(values: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k largest values of each row, (C, k); ties go to the left."""
    return values.argsort(dim=1, descending=True, stable=True)[:, :k]


def _k_largest(maps: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values of each map (N, C, positions) and where they are; ties go to the first positions.

    A value and its position are one integer, so that no two are equal and every device finds the same.
    """
    bits = (maps + 0.0).view(torch.int32).long()  # 0.0 and -0.0 are equal
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats are sorted the other way around
    last = maps.shape[2] - 1
    keys = ascending * (last + 1) + torch.arange(last, -1, -1, device=maps.device)
    places = last - keys.topk(k, 2).values.remainder(last + 1)
    return maps.gather(2, places), places


def _largest_per_map(maps: torch.Tensor, image: torch.Tensor, channel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest value of each selected map and its first position, (M, 1) each."""
    if len(image) * 4 > maps.shape[0] * maps.shape[1]:  # most maps are selected, as in the first batches
        largest = maps.max(2)
        return largest.values[image, channel][:, None], largest.indices[image, channel][:, None]
    largest = maps[image, channel].max(1)
    return largest.values[:, None], largest.indices[:, None]


def _k_largest_per_map(
    maps: torch.Tensor, image: torch.Tensor, channel: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values of each selected map and their positions, (M, k) each; ties go to the first positions."""
    values, positions = [], []
    for chunk in torch.arange(len(image), device=maps.device).split(max(1, MAX_GATHERED // maps.shape[2])):
        rows = maps[image[chunk], channel[chunk]]
        threshold = rows.topk(k, 1).values[:, -1:]
        above, equal = rows > threshold, rows == threshold
        selected = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        chunk_positions = selected.nonzero()[:, 1].view(-1, k)
        chunk_values = rows.gather(1, chunk_positions)
        order = _descending_order(chunk_values, k)
        values.append(chunk_values.gather(1, order))
        positions.append(chunk_positions.gather(1, order))
    return torch.cat(values), torch.cat(positions)
