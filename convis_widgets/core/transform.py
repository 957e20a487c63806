"""Transform: how a network wants its pictures. The one file that knows mean, std, resizing and cropping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .images import is_photo, open_photo, photo_array, resized, to_array, to_bytes

MOST = 40_000_000  # pixels of a photo after resizing, before the crop
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """A network's own preprocessing: resize, crop, mean, std.

    Parameters
    ----------
    size : (int, int)
        Height and width the network takes.
    channels : int
    mean, std : tuple of float
        Per channel, for pixels in [0, 1].
    resize : int or (int, int)
        Length of the shorter side before the central crop, or the whole (height, width).
    resample : PIL.Image.Resampling
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: int | tuple[int, int] | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR

    def __post_init__(self) -> None:
        if any(not -10 <= value <= 10 for value in self.mean) or any(not 0 < value <= 20 for value in self.std):
            raise ValueError(
                f"mean={self.mean} and std={self.std} are for pixels in [0, 1]; divide those for pixels up to 255 by 255"
            )

    def image(self, source: Any) -> np.ndarray:
        """Any picture as (H, W, C) float32 in [0, 1]: photos resized and cropped, arrays as they are."""
        if not is_photo(source):
            return to_array(getattr(source, "image", source), self.channels)  # of a Scene its picture
        photo = open_photo(source)
        if photo.mode == "L" and self.channels == 3:
            photo = photo.convert("RGB")
        width, height = self._resized(*photo.size)
        top, left = self._corner(width, height)
        if width * height > MOST:  # a long thin strip
            x0, y0, x1, y1 = self.crop_box(*photo.size)
            seen = photo.crop((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
            photo = seen.resize(self.size[::-1], self.resample)
        else:
            photo = photo.resize((width, height), self.resample)
            photo = photo.crop((left, top, left + self.size[1], top + self.size[0]))
        return photo_array(photo, self.channels)

    def fit(self, source: Any) -> np.ndarray:
        """Like `image`, but an array of another size is resized and cropped as a photo is."""
        if not is_photo(source):
            array = to_array(getattr(source, "image", source), self.channels)
            if array.shape[:2] == self.size:
                return array
            pixels = to_bytes(array)
            source = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return self.image(source)

    def whole(self, source: Any, side: int | None = None) -> np.ndarray:
        """Any picture, nothing cropped: (H, W, C) float32 in [0, 1], its longer side of so many pixels.

        Without a number an array stays as it is, and a photo's longer side becomes the network's.
        """
        if not is_photo(source):
            array = to_array(getattr(source, "image", source), self.channels)
            if side in (None, max(array.shape[:2])):
                return array
            return resized(array, side / max(array.shape[:2]))
        photo = open_photo(source)
        scale = (side or max(self.size)) / max(photo.size)
        return photo_array(
            photo.resize([max(1, round(length * scale)) for length in photo.size], self.resample), self.channels
        )

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a photo of this width and height that the network sees: left, top, right, bottom in pixels."""
        new_width, new_height = self._resized(width, height)
        top, left = self._corner(new_width, new_height)
        x, y = width / new_width, height / new_height
        return (left * x, top * y, (left + self.size[1]) * x, (top + self.size[0]) * y)

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [0, 1] to what the module was trained on: minus mean, over std."""
        if not any(self.mean) and all(std == 1 for std in self.std):
            return batch.clone()  # the module may write into it
        shape = (1, -1, 1, 1)
        mean = batch.new_tensor(self.mean).view(shape)
        std = batch.new_tensor(self.std).view(shape)
        return (batch - mean) / std

    @property
    def mean_pixel(self) -> tuple[float, ...]:
        """What counts as nothing in a picture that is made: the mean of the training pictures, gray if it is not known."""
        return self.mean if any(self.mean) else (0.5,)

    def origin(self, batch: torch.Tensor) -> torch.Tensor:
        """The mean pixel as a tensor (1, C, 1, 1) beside a batch (N, C, H, W)."""
        return batch.new_tensor(self.mean_pixel).view(1, -1, 1, 1).expand(1, batch.shape[1], 1, 1)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, rounded as torchvision does."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        side = self.resize or min(self.size)
        short, long = min(width, height), max(width, height)
        new_short, new_long = side, int(side * long / short)
        new = (new_short, new_long) if width <= height else (new_long, new_short)
        if new[0] < self.size[1] or new[1] < self.size[0]:  # it has to cover a crop that is not square
            scale = max(self.size[0] / height, self.size[1] / width)
            new = max(self.size[1], round(width * scale)), max(self.size[0], round(height * scale))
        return new

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        return round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
