"""Transform: the preprocessing of a network. The only file that knows mean, std, resizing and cropping."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ..errors import format_shape
from ..types import ImageFile, ImageLike
from .image_file import is_image_file, open_image
from .images import arrange_axes, pil_to_array, resize_image, to_array, to_float, to_uint8

MAX_RESIZED_PIXELS = 40_000_000  # pixels of an image file after resizing, before the crop
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """The preprocessing of a network: resize, crop, mean, std.

    Image files are resized and cropped as published. Arrays and tensors are used as they are, and so are PIL images of the
    network's size.

    Parameters
    ----------
    size : (int, int)
        Height and width of the network's input.
    channels : int
    mean, std : tuple of float
        Per channel, for pixels in [0, 1].
    resize : int or (int, int), optional
        Length of the shorter side, or (height, width), before the central crop; the shorter side of `size` by default.
    resample : PIL.Image.Resampling
    guessed : tuple of str
        Which of "size", "mean" and "std" nobody stated.

    Examples
    --------
    >>> Transform((224, 224), resize=256).image(Image.new("RGB", (640, 480))).shape
    (224, 224, 3)
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: int | tuple[int, int] | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR
    guessed: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if any(value <= 0 for value in self.std) or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError(f"mean={self.mean} and std={self.std} should be finite, and std above 0")
        if any(abs(value) > 10 for value in self.mean) or any(value > 20 for value in self.std):
            raise ValueError(
                f"mean={self.mean} and std={self.std} should be for pixels in [0, 1]; divide values for 0 to 255 by 255"
            )

    def image(self, source: ImageLike) -> np.ndarray:
        """Convert any image to (H, W, C) float32 in [0, 1]; files are resized and cropped, arrays are not.

        Unlike with torchvision's transforms, a PIL image of the network's size is not enlarged and cropped.
        """
        if not is_image_file(source):
            return to_array(source, self.channels)
        return to_float(self._file_pixels(source))

    def is_prepared(self, source: ImageLike, opened: Image.Image) -> bool:
        """Whether an image is neither resized nor cropped, a PIL image of the network's size.

        Parameters
        ----------
        source : image
        opened : PIL.Image.Image
            The same image, opened and upright.
        """
        return isinstance(source, Image.Image) and opened.size == self.size[::-1]

    def resized_image(self, source: ImageLike) -> np.ndarray:
        """Like `image`, but arrays of another size are resized and cropped like files."""
        return to_float(self.resized_pixels(source))

    def resized_pixels(self, source: ImageLike) -> np.ndarray:
        """Like `resized_image`, but uint8 for image files and resized arrays."""
        if is_image_file(source):
            return self._file_pixels(source)
        pixels = arrange_axes(source, self.channels)
        if pixels.shape[:2] == self.size:
            return to_array(source, self.channels)
        if pixels.dtype != np.uint8 or pixels.shape[2] != self.channels:
            pixels = to_uint8(to_array(source, self.channels))
        bands = [pixels] if self.channels == 3 else list(np.moveaxis(pixels, 2, 0))
        return self._convert([Image.fromarray(np.ascontiguousarray(band)) for band in bands], self._resize_and_crop)

    def _file_pixels(self, source: ImageFile) -> np.ndarray:
        opened = _split(open_image(source, channels=self.channels))
        is_prepared = self.is_prepared(source, opened[0])
        return self._convert(opened, (lambda image: image) if is_prepared else self._resize_and_crop)

    def _convert(self, images: Sequence[Image.Image], resize: Callable[[Image.Image], Image.Image]) -> np.ndarray:
        """Resize an image, or all channels of one, and convert it to (H, W, C) uint8."""
        channels = self.channels if len(images) == 1 else 1
        return np.concatenate([pil_to_array(resize(image), channels) for image in images], axis=2)

    def _resize_and_crop(self, opened: Image.Image) -> Image.Image:
        width, height = self._resized_size(*opened.size)
        if width * height > MAX_RESIZED_PIXELS:  # a long thin strip: crop first
            x0, y0, x1, y1 = self.crop_box(*opened.size)
            cropped = opened.crop((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
            return cropped.resize(self.size[::-1], self.resample)
        top, left = self._crop_corner(width, height)
        opened = opened.resize((width, height), self.resample)
        return opened.crop((left, top, left + self.size[1], top + self.size[0]))

    def uncropped_image(self, source: ImageLike, side: int | None = None) -> np.ndarray:
        """Convert any image to (H, W, C) float32 in [0, 1] without cropping.

        Parameters
        ----------
        source : image
        side : int, optional
            Length of the longer side. By default arrays keep their size, and files get the longer side of the network.
        """
        if not is_image_file(source):
            array = to_array(source, self.channels)
            longer_side = max(array.shape[:2])
            return array if side is None or side == longer_side else resize_image(array, side / longer_side)
        opened = open_image(source, channels=self.channels)
        scale = (side or max(self.size)) / max(opened.size)
        width, height = (max(1, round(length * scale)) for length in opened.size)
        return to_float(self._convert(_split(opened), lambda image: image.resize((width, height), self.resample)))

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Part of an image file that the network sees: left, top, right, bottom in pixels of the file.

        Parameters
        ----------
        width, height : int
            Size of the image file in pixels.
        """
        new_width, new_height = self._resized_size(width, height)
        top, left = self._crop_corner(new_width, new_height)
        x, y = width / new_width, height / new_height
        return (left * x, top * y, (left + self.size[1]) * x, (top + self.size[0]) * y)

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        """Subtract the mean and divide by the std, for images (N, C, H, W) in [0, 1]."""
        if not any(self.mean) and all(std == 1 for std in self.std):
            return batch.clone()  # the module may write into it
        return (batch - _per_channel(self.mean, batch.dtype, batch.device)) / _per_channel(
            self.std, batch.dtype, batch.device
        )

    @property
    def guesses(self) -> dict[str, str]:
        """What was guessed, as text by the argument of `Network` that states it."""
        values = {"size": format_shape(self.size), "mean": _format_values(self.mean), "std": _format_values(self.std)}
        return {name: values[name] for name in self.guessed}

    @property
    def mean_pixel(self) -> tuple[float, ...]:
        """Mean pixel of the training images, gray if unknown: the neutral value of synthesized images."""
        return self.mean if any(self.mean) else (0.5,)

    def mean_pixel_tensor(self, batch: torch.Tensor) -> torch.Tensor:
        """The mean pixel as a (1, C, 1, 1) tensor of the dtype and device of `batch` (N, C, H, W)."""
        return _per_channel(self.mean_pixel, batch.dtype, batch.device).expand(1, batch.shape[1], 1, 1)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, rounded as in torchvision."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        side = self.resize or min(self.size)
        short, long = min(width, height), max(width, height)
        new_short, new_long = side, int(side * long / short)
        new = (new_short, new_long) if width <= height else (new_long, new_short)
        if new[0] < self.size[1] or new[1] < self.size[0]:  # it must cover a crop that is not square
            scale = max(self.size[0] / height, self.size[1] / width)
            new = max(self.size[1], round(width * scale)), max(self.size[0], round(height * scale))
        return new

    def _crop_corner(self, width: int, height: int) -> tuple[int, int]:
        return round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)


def format_guesses(guesses: Mapping[str, str]) -> str:
    """What was guessed, and how to state it, see `Transform.guesses`."""
    found, keywords = (f"{name} {value}" for name, value in guesses.items()), (f"{name}=" for name in guesses)
    return f"guessed: {', '.join(found)}; state {', '.join(keywords)}"


def _format_values(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _split(image: Image.Image) -> list[Image.Image]:
    """Channels of an image with 2 or 4, since Pillow weights colors by alpha when it resizes; otherwise the image."""
    return [image] if image.mode in ("L", "RGB") else list(image.split())


@functools.lru_cache(64)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A (1, C, 1, 1) tensor. It is kept, since a GPU has to be waited for to make one."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)
