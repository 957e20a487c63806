"""ImageGroups: groups of the images of a map, by label, prediction or cluster, with their colors."""

from __future__ import annotations

import collections

import numpy as np

from ...core.dataset.scan import Scan
from ...core.text import one_line
from ..controls.text import text_html
from ..drawing.bars import legend_html
from ..drawing.heatmap import CATEGORIES, OTHER_CATEGORY

MAX_CLUSTERS = 10
MAX_LEGEND_ENTRIES = 12
MAX_NAME = 40  # characters of a name in the legend
SHADES = (
    1.0,
    0.6,
    1.35,
    0.4,
)  # brightness of the colors: more groups than categories have the same colors darker or lighter


class ImageGroups:
    """Groups of images.

    Parameters
    ----------
    scan : Scan
    images : (n,) int array
        Indices of the images.
    """

    def __init__(self, scan: Scan, images: np.ndarray) -> None:
        self.scan, self.images = scan, images
        self._clusters: dict[str, np.ndarray] = {}

    @property
    def labeled(self) -> bool:
        """Whether one of the images has a label."""
        return bool((self.scan.labels[self.images] >= 0).any())

    def numbers(self, color_by: str, space: str) -> np.ndarray:
        """The group of each image, (n,) integers; -1 for none.

        Parameters
        ----------
        color_by : {"label", "prediction", "cluster"}
        space : {"features", "pixels"}
            What is clustered.
        """
        if color_by == "cluster":
            return self._cluster(space)
        return (self.scan.labels if color_by == "label" else self.scan.predictions)[self.images]

    def colors(self, color_by: str, space: str) -> np.ndarray | None:
        """The color of each image, (n, 3) uint8; None for no colors."""
        if color_by == "none":
            return None
        numbers = self.numbers(color_by, space)
        return np.where(numbers[:, None] >= 0, group_colors(numbers), OTHER_CATEGORY)

    def legend(self, color_by: str, space: str) -> str:
        """HTML with colors, names and sizes of the largest groups."""
        if color_by == "none":
            return ""
        numbers = self.numbers(color_by, space)
        counts = collections.Counter(numbers[numbers >= 0].tolist())
        if not counts:
            return text_html("there are no labels")
        largest = sorted(counts.most_common(MAX_LEGEND_ENTRIES))
        entries = [
            (f"{self._name(number, color_by)}: {n}", group_colors(np.array(number)).tolist()) for number, n in largest
        ]
        more = len(counts) - len(largest)
        return legend_html(entries) + (text_html(f"and {more} more") if more else "")

    def _name(self, number: int, color_by: str) -> str:
        if color_by == "cluster":
            return f"cluster {number}"
        return one_line(
            self.scan.images.label_name(number) if color_by == "label" else self.scan.net.labels[number], MAX_NAME
        )

    def _cluster(self, space: str) -> np.ndarray:
        """k-means clusters of features or thumbnails."""
        if space not in self._clusters:
            from sklearn.cluster import KMeans

            vectors = self.scan.features(self.images) if space == "features" else self.scan.thumbnails(self.images)
            vectors = vectors.reshape(len(self.images), -1).astype(np.float32)
            count = min(MAX_CLUSTERS, len(np.unique(vectors, axis=0)))  # there are no more clusters than different vectors
            self._clusters[space] = KMeans(count, n_init=1, random_state=0).fit_predict(vectors)
        return self._clusters[space]


def group_colors(numbers: np.ndarray) -> np.ndarray:
    """Colors (..., 3) uint8 of groups: first those that the color-blind can distinguish, then other shades of them."""
    colors = np.concatenate([np.clip(CATEGORIES * shade, 0, 255) for shade in SHADES]).astype(np.uint8)
    return colors[numbers % len(colors)]
