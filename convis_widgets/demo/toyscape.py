"""Toyscape: an endless picture book with true masks, so that a lesson can tell whether a heat map is right.

Ten classes of figures made of named parts, in random pose and color, on busy backgrounds. Scene `i` of a seed is
always the same picture. How figures look is in ``figures``, what lies behind them in ``scenery``.
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
from .scenery import Picture, Split, distractors, ground, lighting

__all__ = ["LABELS", "PARTS", "Scene", "Toyscape", "images"]


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture and the truth about it.

    Attributes
    ----------
    image : (S, S, 3) float32 array
        The picture, in [0, 1], read-only.
    label : int
        Position of the class in `LABELS`.
    mask : (S, S) bool array
        The pixels of the figure (its cast shadow is background), read-only.
    parts : dict of str to (S, S) bool array
        The visible pixels of each part. Every pixel of the mask belongs to exactly one part: the one that covers
        most of it.
    """

    image: Picture
    label: int
    mask: NDArray[np.bool_] = field(repr=False)
    parts: dict[str, NDArray[np.bool_]] = field(repr=False)

    def __post_init__(self) -> None:
        for array in (self.image, self.mask, *self.parts.values()):
            array.setflags(write=False)

    def __repr__(self) -> str:
        return f"Scene({self.name!r}, {len(self.image)}x{len(self.image)}, figure on {self.mask.mean():.0%} of the picture)"

    @property
    def name(self) -> str:
        """The class name."""
        return LABELS[self.label]


class Toyscape(Sequence[Scene]):
    """A balanced sequence of scenes, each drawn when it is asked for.

    Parameters
    ----------
    n : int
        Number of scenes. Scene `i` does not depend on it.
    seed : int
        Another seed gives other pictures.
    split : {"test", "train"}
        "train" takes its photograph crops from the left halves of the photographs, "test" from the right halves;
        all else is random in the same way, from other random numbers. The demo networks have seen seed 0 of "train".
    size : int
        Side of the pictures in pixels; the same scene in another size is the same scene, finer or coarser.

    Examples
    --------
    >>> scenes = Toyscape(1000, seed=1)
    >>> scenes[3].name, scenes[3].image.shape
    ('tree', (64, 64, 3))
    >>> bool((scenes[3].mask == scenes[3].parts["crown"] | scenes[3].parts["trunk"]).all())
    True
    """

    classes = LABELS  # as torchvision calls the names of labels

    def __init__(self, n: int, *, seed: int = 0, split: Split = "test", size: int = 64) -> None:
        if n < 0 or seed < 0 or size < 16:
            raise ValueError(f"n={n}, seed={seed}, size={size}: need n >= 0, seed >= 0 and size >= 16")
        if split not in ("train", "test"):
            raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
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
        """Draw scene `index`; a slice draws a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        i, label = self._position(index), self.label(index)
        figure = self._figure(i, LABELS[label])
        behind, light, (dx, dy) = self._behind(i)
        behind = behind * (1 - self._shadow(i, figure, (-dx, -dy)))
        image = figure.color * self._shading(figure, (dx, dy)) + behind * (1 - figure.coverage)
        return Scene(_clip(image * light), label, figure.mask, figure.parts)

    def label(self, index: int) -> int:
        """The label of scene `index`, without drawing it."""
        return self._position(index) % len(LABELS)

    def background(self, index: int) -> Picture:
        """The picture of scene `index` without its figure and the shadow that it casts."""
        behind, light, _ = self._behind(self._position(index))
        return _clip(behind * light)

    def _position(self, index: int) -> int:
        if not -self.n <= index < self.n:
            raise IndexError(f"scene {index} of {self.n}")
        return range(self.n)[index]

    def _random(self, i: int, purpose: int) -> np.random.Generator:
        """Random numbers for one purpose (0 background, 1 figure, 2 shadow), so that none leaks into another."""
        return np.random.default_rng([self.seed, int(self.split == "train"), i, purpose])

    def _behind(self, i: int) -> tuple[Picture, Picture, tuple[float, float]]:
        rng = self._random(i, 0)
        picture = ground(rng, self.size, self.split)
        shapes = draw(distractors(rng), ("shape",), self.size, contour=0.012)
        light, source = lighting(rng, self.size)
        return shapes.color + picture * (1 - shapes.coverage), light, source

    def _figure(self, i: int, name: str) -> Layer:
        rng = self._random(i, 1)
        radius = rng.uniform(*_RADIUS)
        turn, shear, stretch = rng.normal(0, 0.22), rng.normal(0, 0.1), rng.uniform(0.88, 1.14)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        sheared = np.array([[stretch, shear], [0, 1 / stretch]])
        pose = turned @ sheared * radius * (rng.choice([-1, 1]), 1)
        # Figures are pushed away from the middle: a heat map that always glows in the middle must not win.
        center = 0.5 + (0.5 - 0.92 * radius) * (2 * rng.beta(0.55, 0.55, 2) - 1)
        contour = rng.uniform(0.035, 0.06) * radius if rng.random() < 0.65 else 0.0
        ink = INK if rng.random() < 0.6 else None
        pieces = [piece._replace(outline=piece.outline @ pose.T + center) for piece in FIGURES[name](rng)]
        return draw(pieces, PARTS[name], self.size, contour=contour, ink=ink)

    def _shadow(self, i: int, figure: Layer, away: tuple[float, float]) -> Picture:
        rng = self._random(i, 2)
        depth, strength = rng.uniform(0.02, 0.08) * self.size, rng.uniform(0.3, 0.6) if rng.random() < 0.75 else 0.0
        cover = Image.fromarray((figure.coverage[..., 0] * 255).astype(np.uint8))
        move = (1, 0, -away[0] * depth, 0, 1, -away[1] * depth)
        moved = cover.transform(cover.size, Image.Transform.AFFINE, move, Image.Resampling.BILINEAR)
        soft = np.asarray(moved.filter(ImageFilter.GaussianBlur(depth * 0.4)))
        return (strength / 255 * soft.astype(np.float32))[..., None]

    def _shading(self, figure: Layer, source: tuple[float, float]) -> NDArray[np.float64]:
        """Brighter toward the light and darker away from it, 1 on average over the figure."""
        y, x = np.mgrid[0 : self.size, 0 : self.size] / self.size
        toward = (x * source[0] + y * source[1])[..., None]
        return 1 + _RELIEF * (toward - np.average(toward, weights=figure.coverage + 1e-9))


_RADIUS = (0.19, 0.38)  # half the side of a figure's square, in units of the picture's side
_RELIEF = 0.6


def images(n: int = 10, *, seed: int = 0, label: str | int | None = None) -> list[Scene]:
    """A list of scenes to look at: one of each class in turn, or all of one class.

    Parameters
    ----------
    n : int
        Number of scenes.
    seed : int
        Another seed gives other pictures.
    label : str or int, optional
        A class name or index; None goes through all classes.

    Raises
    ------
    ValueError
        If there is no such class.
    """
    if label is None:
        return Toyscape(n, seed=seed)[:]
    number = LABELS.index(label) if label in LABELS else label
    if not isinstance(number, int | np.integer) or isinstance(number, bool) or not 0 <= number < len(LABELS):
        raise ValueError(f"no class {label!r}; choose one of {', '.join(LABELS)}, or its index from 0 to {len(LABELS) - 1}")
    return Toyscape(n * len(LABELS), seed=seed)[int(number) :: len(LABELS)]


def _clip(image: NDArray[np.floating]) -> Picture:
    return np.clip(image, 0, 1).astype(np.float32)
