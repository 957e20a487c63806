"""History: the images of a Run, in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

MAX_IMAGES = 64  # beyond that, every second image is dropped
MAX_BYTES = 2**28  # ... also of large images
FRAME_SECONDS = 0.08  # display time of an image in a GIF
LAST_FRAME_SECONDS = 1.5  # display time of the last image


class History:
    """Evenly spaced images of a Run of unknown length, in bounded memory.

    Attributes
    ----------
    steps : list of int
    images : list of (H, W, C) uint8 arrays
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.images: list[np.ndarray] = []
        self._stride = 1

    def __len__(self) -> int:
        return len(self.steps)

    def accepts(self, step: int) -> bool:
        """Whether the image of this step should be added."""
        return step % self._stride == 0

    def add(self, step: int, image: np.ndarray, *, last: bool = False) -> None:
        """Add an image.

        Parameters
        ----------
        step : int
        image : (H, W, C) uint8 array
        last : bool
            Whether it is the last image of the Run, which is kept whatever its step.
        """
        self.steps.append(step)
        self.images.append(image)
        if len(self) > max(2, min(MAX_IMAGES, MAX_BYTES // max(1, image.nbytes))) and not last:
            self._stride *= 2
            kept = [i for i, step in enumerate(self.steps) if self.accepts(step)]
            self.steps, self.images = [self.steps[i] for i in kept], [self.images[i] for i in kept]

    def to_gif(self, compose: Callable[[np.ndarray], np.ndarray] = lambda image: image) -> bytes:
        """Animated GIF of all images.

        Parameters
        ----------
        compose : callable((H, W, C) array) -> (H, W, 3) uint8 array
            Applied to each image.

        Raises
        ------
        ValueError
            There is no image yet.
        """
        frames = [Image.fromarray(compose(image)) for image in self.images]
        if not frames:
            raise ValueError("there is no image yet; start the computation first")
        durations = [*[round(1000 * FRAME_SECONDS)] * (len(frames) - 1), round(1000 * LAST_FRAME_SECONDS)]
        data = io.BytesIO()
        frames[0].save(data, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        return data.getvalue()
