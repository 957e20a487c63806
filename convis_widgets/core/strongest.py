"""Strongest: the k largest activations of every channel among all pictures offered so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

ROWS = 1 << 24  # numbers that are gathered at once


class Strongest:
    """For each channel of a layer its k largest values, with picture and position, on the network's device.

    Of equal values the one of the lower picture counts, then that of the lower position, row by row. So it does not matter
    how the pictures were divided into batches.

    Parameters
    ----------
    shape : (C, h, w)
        Of the layer's maps.
    k : int
    one_per_image : bool
        Whether only the largest value of a picture counts.
    device : torch.device
    """

    def __init__(self, shape: tuple[int, int, int], k: int, one_per_image: bool, device: torch.device) -> None:
        self.each = 1 if one_per_image else k
        self.found = (
            torch.full((shape[0], k), -torch.inf, device=device),
            torch.full((shape[0], k), -1, device=device),
            torch.full((shape[0], k), -1, device=device),
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, pictures and positions, (C, k) each, the largest first; -inf and -1 where there are fewer than k."""
        values, images, positions = (part.cpu().numpy() for part in self.found)
        return values, images, positions

    def restore(self, values: np.ndarray, images: np.ndarray, positions: np.ndarray) -> None:
        """Begin with what `arrays` gave once."""
        self.found = tuple(
            torch.from_numpy(part).to(old) for part, old in zip((values, images, positions), self.found, strict=True)
        )

    def merge(self, values: np.ndarray, images: np.ndarray, positions: np.ndarray) -> None:
        """Take in what `arrays` gave elsewhere, of pictures that come after all that were offered here."""
        pairs = zip(self.found, (values, images, positions), strict=True)
        joined = [torch.cat([mine, torch.from_numpy(theirs).to(mine)], 1) for mine, theirs in pairs]
        self.found = _first(joined, self.found[0].shape[1])

    def offer(self, maps: torch.Tensor, images: Sequence[int]) -> None:
        """See the maps (N, C, h, w) of pictures with these indices, which are larger than those of all before."""
        maps = maps.flatten(2)
        numbers = torch.as_tensor(images, device=maps.device)
        worth = maps.amax(2) > self.found[0][:, -1]  # NaN never is
        picture, channel = worth.nonzero(as_tuple=True)
        if not len(picture):
            return
        if self.each == 1:
            values, positions = _largest(maps, picture, channel)
        else:
            values, positions = _largest_few(maps, picture, channel, min(self.each, maps.shape[2]))
        # back to a table with a row for each channel that has something new, pictures from left to right
        rows = worth.any(0).nonzero()[:, 0]
        row = torch.empty_like(worth[0], dtype=torch.long)
        row[rows] = torch.arange(len(rows), device=maps.device)
        new = [
            torch.full((len(rows), len(maps), values.shape[1]), fill, dtype=part.dtype, device=maps.device)
            for part, fill in ((values, -torch.inf), (numbers, -1), (positions, -1))
        ]
        for table, part in zip(new, (values, numbers[picture, None], positions), strict=True):
            table[row[channel], picture] = part
        joined = [torch.cat([old[rows], table.flatten(1)], 1) for old, table in zip(self.found, new, strict=True)]
        found = [old.clone() for old in self.found]  # whoever reads meanwhile sees all of it before or after
        for whole, part in zip(found, _first(joined, self.found[0].shape[1]), strict=True):
            whole[rows] = part
        self.found = tuple(found)


def _first(parts: Sequence[torch.Tensor], k: int) -> tuple[torch.Tensor, ...]:
    """Of tables (C, n) the k columns of each row where the first table is largest; of equal ones those to the left."""
    order = parts[0].argsort(dim=1, descending=True, stable=True)[:, :k]
    return tuple(part.gather(1, order) for part in parts)


def _largest(maps: torch.Tensor, picture: torch.Tensor, channel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest value of each chosen map, and its first position, (M, 1) each."""
    if len(picture) * 4 > maps.shape[0] * maps.shape[1]:  # nearly all are chosen, as at the beginning
        best = maps.max(2)
        return best.values[picture, channel][:, None], best.indices[picture, channel][:, None]
    best = maps[picture, channel].max(1)
    return best.values[:, None], best.indices[:, None]


def _largest_few(
    maps: torch.Tensor, picture: torch.Tensor, channel: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest values of each chosen map, and of equal ones the first positions, (M, k) each."""
    values, positions = [], []
    for part in torch.arange(len(picture), device=maps.device).split(max(1, ROWS // maps.shape[2])):
        rows = maps[picture[part], channel[part]]
        least = rows.topk(k, 1).values[:, -1:]
        above, equal = rows > least, rows == least
        chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
        positions.append(chosen.nonzero()[:, 1].view(-1, k))
        values.append(rows.gather(1, positions[-1]))
        values[-1], positions[-1] = _first((values[-1], positions[-1]), k)
    return torch.cat(values), torch.cat(positions)
