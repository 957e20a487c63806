"""Toyscape: a synthetic image set with exact masks, for the evaluation of heat maps.

Ten classes of figures with named parts, in random pose and color, on textured backgrounds. Scene `i` of a seed is always the
same. The figures are defined in ``figures``, the backgrounds in ``scenery``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .canvas import Layer, draw
from .figures import FIGURES, LABELS, PARTS
from .palette import INK
from .scenery import ImageArray, Split, distractors, ground, lighting

__all__ = ["LABELS", "PARTS", "Scene", "Toyscape", "images"]


@dataclass(frozen=True, eq=False)
class Scene:
    """An image with its label and masks; the arrays are read-only.

    Attributes
    ----------
    image : (S, S, 3) float32 array in [0, 1]
    label : int
        Index of the class in `LABELS`.
    mask : (S, S) bool array
        Pixels of the figure, without its shadow.
    parts : dict of str to (S, S) bool array
        Visible pixels of each part. Every pixel of the mask belongs to the part that covers most of it.
    """

    image: ImageArray
    label: int
    mask: NDArray[np.bool_] = field(repr=False)
    parts: dict[str, NDArray[np.bool_]] = field(repr=False)

    def __post_init__(self) -> None:
        for array in (self.image, self.mask, *self.parts.values()):
            array.setflags(write=False)

    def __repr__(self) -> str:
        return f"Scene({self.name!r}, {len(self.image)}x{len(self.image)}, figure on {self.mask.mean():.0%} of the image)"

    @property
    def name(self) -> str:
        """The class name."""
        return LABELS[self.label]


class Toyscape(Sequence[Scene]):
    """A sequence of scenes with balanced classes, drawn on access.

    Parameters
    ----------
    n : int
        Number of scenes. Scene `i` does not depend on it.
    seed : int
    split : {"test", "train"}
        Independent random numbers. Crops of photographs in backgrounds come from the left halves of the photographs for
        "train", and from the right halves for "test". The demo networks were trained on seed 0 of "train".
    size : int
        Side of the images in pixels. It determines the resolution only, not what a scene shows.

    Raises
    ------
    ValueError
        A number is too small, or there is no such split.

    Examples
    --------
    >>> scenes = Toyscape(1000, seed=1)
    >>> scenes[3].name, scenes[3].image.shape
    ('tree', (64, 64, 3))
    >>> bool((scenes[3].mask == scenes[3].parts["crown"] | scenes[3].parts["trunk"]).all())
    True
    """

    classes = LABELS  # the name in torchvision

    def __init__(self, n: int, *, seed: int = 0, split: Split = "test", size: int = 64) -> None:
        if n < 0 or seed < 0 or size < 16:
            raise ValueError(f"n={n}, seed={seed}, size={size}: need n >= 0, seed >= 0 and size >= 16")
        if split not in ("train", "test"):
            raise ValueError(f"no split {split!r}; choose 'train' or 'test'")
        self.n, self.seed, self.split, self.size = n, seed, split, size

    def __repr__(self) -> str:
        return f"Toyscape({self.n}, seed={self.seed}, split={self.split!r}, size={self.size})"

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        """Draw a scene, or a list of the scenes in a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        i, label = self._check_index(index), self.label(index)
        figure = self._figure(i, LABELS[label])
        background, light, (dx, dy) = self._background(i)
        background = background * (1 - self._shadow(i, figure, (-dx, -dy)))
        image = figure.color * self._shading(figure, (dx, dy)) + background * (1 - figure.coverage)
        return Scene(_clip(image * light), label, figure.mask, figure.parts)

    def label(self, index: int) -> int:
        """Label of a scene, without drawing it."""
        return self._check_index(index) % len(LABELS)

    def background(self, index: int) -> ImageArray:
        """Image of a scene without its figure and shadow, (S, S, 3) float32 in [0, 1]."""
        background, light, _ = self._background(self._check_index(index))
        return _clip(background * light)

    def _check_index(self, index: int) -> int:
        """Non-negative index of a scene."""
        if not -self.n <= index < self.n:
            raise IndexError(f"no scene {index}; there are {self.n}")
        return range(self.n)[index]

    def _random(self, i: int, purpose: int) -> np.random.Generator:
        """Independent random numbers for one purpose: 0 background, 1 figure, 2 shadow."""
        return np.random.default_rng([self.seed, int(self.split == "train"), i, purpose])

    def _background(self, i: int) -> tuple[ImageArray, ImageArray, tuple[float, float]]:
        """Background without light, strength of the light, and the unit vector toward its source."""
        rng = self._random(i, 0)
        texture = ground(rng, self.size, self.split)
        shapes = draw(distractors(rng), ("shape",), self.size, contour=0.012)
        light, source = lighting(rng, self.size)
        return shapes.color + texture * (1 - shapes.coverage), light, source

    def _figure(self, i: int, name: str) -> Layer:
        rng = self._random(i, 1)
        radius = rng.uniform(*_RADIUS)
        angle, shear, stretch = rng.normal(0, 0.22), rng.normal(0, 0.1), rng.uniform(0.88, 1.14)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        distortion = np.array([[stretch, shear], [0, 1 / stretch]])
        pose = rotation @ distortion * radius * (rng.choice([-1, 1]), 1)
        # Figures avoid the center of the image, so that heat maps biased toward the center score badly.
        center = 0.5 + (0.5 - 0.92 * radius) * (2 * rng.beta(0.55, 0.55, 2) - 1)
        contour = rng.uniform(0.035, 0.06) * radius if rng.random() < 0.65 else 0.0
        ink = INK if rng.random() < 0.6 else None
        pieces = [piece._replace(outline=piece.outline @ pose.T + center) for piece in FIGURES[name](rng)]
        return draw(pieces, PARTS[name], self.size, contour=contour, ink=ink)

    def _shadow(self, i: int, figure: Layer, away: tuple[float, float]) -> ImageArray:
        rng = self._random(i, 2)
        depth, strength = rng.uniform(0.02, 0.08) * self.size, rng.uniform(0.3, 0.6) if rng.random() < 0.75 else 0.0
        cover = Image.fromarray((figure.coverage[..., 0] * 255).astype(np.uint8))
        move = (1, 0, -away[0] * depth, 0, 1, -away[1] * depth)
        shifted = cover.transform(cover.size, Image.Transform.AFFINE, move, Image.Resampling.BILINEAR)
        soft = np.asarray(shifted.filter(ImageFilter.GaussianBlur(depth * 0.4)))
        return (strength / 255 * soft.astype(np.float32))[..., None]

    def _shading(self, figure: Layer, source: tuple[float, float]) -> NDArray[np.float64]:
        """Brightness of the figure, larger toward the light, with mean 1 over the figure."""
        y, x = np.mgrid[0 : self.size, 0 : self.size] / self.size
        toward = (x * source[0] + y * source[1])[..., None]
        return 1 + _RELIEF * (toward - np.average(toward, weights=figure.coverage + 1e-9))


_RADIUS = (0.19, 0.38)  # half the side of a figure, in units of the side of the image
_RELIEF = 0.6  # strength of the shading


def images(n: int = 10, *, seed: int = 0, label: str | int | None = None) -> list[Scene]:
    """Draw a list of scenes, of all classes in turn or of one class.

    Parameters
    ----------
    n : int
        Number of scenes.
    seed : int
    label : str or int, optional
        Name or index of a class; all classes by default.

    Raises
    ------
    ValueError
        There is no such class.
    """
    if label is None:
        return Toyscape(n, seed=seed)[:]
    number = LABELS.index(label) if label in LABELS else label
    if not isinstance(number, int | np.integer) or isinstance(number, bool) or not 0 <= number < len(LABELS):
        raise ValueError(f"no class {label!r}; choose one of {', '.join(LABELS)}, or its index from 0 to {len(LABELS) - 1}")
    return Toyscape(n * len(LABELS), seed=seed)[int(number) :: len(LABELS)]


def _clip(image: NDArray[np.floating]) -> ImageArray:
    return np.clip(image, 0, 1).astype(np.float32)
