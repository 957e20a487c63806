"""History: the pictures of a computation, some of them, from its beginning to now."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

MOST = 64  # pictures; when there are more, every second one is let go
SECONDS = 0.08  # that each is shown in a film
END = 1.5  # ... and the last one


class History:
    """Pictures at equal steps of a computation, of which nobody knows how long it will be, in bounded memory.

    Attributes
    ----------
    steps : list of int
    pictures : list of (H, W, C) uint8 arrays
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.pictures: list[np.ndarray] = []
        self._every = 1

    def __len__(self) -> int:
        return len(self.steps)

    def wants(self, step: int) -> bool:
        """Whether the picture of this step belongs here."""
        return step % self._every == 0

    def add(self, step: int, picture: np.ndarray, *, last: bool = False) -> None:
        """Keep a picture, (H, W, C) uint8; the last of all whatever its step."""
        self.steps.append(step)
        self.pictures.append(picture)
        if len(self) > MOST and not last:
            self._every *= 2
            kept = [i for i, step in enumerate(self.steps) if self.wants(step)]
            self.steps, self.pictures = [self.steps[i] for i in kept], [self.pictures[i] for i in kept]

    def film(self, compose: Callable[[np.ndarray], np.ndarray] = lambda picture: picture) -> bytes:
        """All of them as an animated GIF, each as `compose` makes of it."""
        frames = [Image.fromarray(compose(picture)) for picture in self.pictures]
        if not frames:
            raise ValueError("there is no picture yet; start the computation first")
        durations = [*[round(1000 * SECONDS)] * (len(frames) - 1), round(1000 * END)]
        data = io.BytesIO()
        frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        return data.getvalue()
