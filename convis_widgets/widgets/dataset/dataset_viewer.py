"""DatasetViewer: the base of the widgets on an image set, which share one Scan of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import ipywidgets
import numpy as np

from ...core.dataset.image_set import ImageSet
from ...core.dataset.scan import Scan
from ...core.runs.frame import Frame
from ...core.runs.run import Run
from ...core.text import MAX_NAME, one_line
from ...core.types import ImagesLike, NetworkLike
from ..base.params import Param
from ..base.viewer import Viewer
from ..controls.frame_view import FrameView
from ..controls.run_bar import RunBar
from ..controls.text import text_html
from ..default_images import default_image_set
from ..drawing.encode import enlarge, to_rgb

FULL_IMAGE_SIDE = 192  # pixels
MAX_NAMED_FILES, MAX_REASON = 3, 200  # files that a notice lists, and characters of what it says about each


class ImageParam(Param):
    """The index of an image of the set, or None."""

    type_text = "int"

    def check(self, viewer: Any, value: Any) -> Any:
        """Reject an index without an image."""
        return viewer.check_image(value)


class ImagesParam(ImageParam):
    """Indices of images of the set, kept as a tuple. It may be empty unless the default is None."""

    type_text = "sequence of int"

    def check(self, viewer: Any, value: Any) -> tuple[int, ...]:
        """Convert an index or a sequence of indices; reject those without an image."""
        indices = tuple(viewer.check_image(index) for index in (value if isinstance(value, Iterable) else [value]))
        if not indices and self.default_value is None:
            raise ValueError(f"{self.name} is empty; give indices from 0 to {len(viewer.images) - 1}")
        return indices


class DatasetViewer(Viewer):
    """Base of the widgets on an image set.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : Scan, ImageSet, folder, list, array, Dataset, optional
        See `ImageSet`; Toyscape or handwritten digits by default.

    Attributes
    ----------
    scan : Scan
    images : ImageSet
    """

    linkable: ClassVar[tuple[str, ...]] = ("image_index",)
    result: ClassVar[str]  # array of the Frames that are drawn; the Frames of the scan before them do not have it

    image_index = ImageParam(None, "Index of the selected image.", effect="selection_changed")
    bar: RunBar

    def __init__(self, network: NetworkLike = None, images: ImagesLike | None = None, **kwargs: Any) -> None:
        params = type(self).params
        selections = {name: kwargs.pop(name) for name in [*kwargs] if isinstance(params.get(name), ImageParam)}
        super().__init__(images.net if network is None and isinstance(images, Scan) else network, **kwargs)
        images = default_image_set(self.network) if images is None else images
        self.scan = Scan.ensure(self.network, images, self.patches_per_channel)
        self.bar = RunBar(self.make_run)
        self.notices = ipywidgets.HTML()
        self.progress = ipywidgets.VBox([self.bar, self.notices])
        self.children = [self.progress, self.status]  # closed if the rest of the constructor fails
        for name, indices in selections.items():
            setattr(self, name, indices)

    # -- what a subclass may define ------------------------------------------------------------------------------

    @property
    def patches_per_channel(self) -> int:
        """Activations that the Scan has to keep of each channel."""
        return 1

    def selection_changed(self) -> None:
        """Called after `image_index` has changed."""

    # -- images --------------------------------------------------------------------------------------------------

    @property
    def images(self) -> ImageSet:
        """The images."""
        return self.scan.images

    def check_image(self, index: Any) -> int:
        """Return an index as int; ValueError if the set has no such image."""
        count = len(self.images)
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < count:
            raise ValueError(f"there is no image {index!r}; give an index from 0 to {count - 1}")
        return int(index)

    def can_link(self, name: str, other: Viewer) -> bool:
        """Whether a trait can be shared with another widget: an image only if both have the same image set."""
        if name == "image_index" and isinstance(other, DatasetViewer) and self.scan.fingerprint != other.scan.fingerprint:
            return False
        return super().can_link(name, other)

    def is_scanned(self, index: int) -> bool:
        """Whether an image has been scanned and could be read."""
        return index < self.scan.num_seen and index not in self.scan.skipped

    def full_image(self, index: int, side: int) -> np.ndarray:
        """An image as the network sees it, enlarged, (H, W, 3) uint8."""
        return enlarge(to_rgb(self.scan.image(index)), side)

    def image_text(self, index: int) -> str:
        """Name and label of an image."""
        label, name = self.images.label_name(int(self.scan.labels[index])), self.images.names[index]
        return (
            f"{one_line(name, MAX_NAME)}, {one_line(label, MAX_NAME)}"
            if label and label not in name
            else one_line(name, MAX_NAME)
        )

    def source_text(self) -> str:
        """Name of the network and of the images."""
        return f"{one_line(self.network.name, MAX_NAME)}, {one_line(self.images.name, MAX_NAME)}"

    def count_text(self) -> str:
        """Number of images, and how many of them have been scanned and could be read."""
        valid, count = len(self.scan.valid), len(self.images)
        return f"{count} images" if valid == count else f"{valid} of {count} images"

    # -- the computation -----------------------------------------------------------------------------------------

    def snapshot_ready(self, frame: Frame) -> bool:
        """A snapshot waits for the last Frame."""
        return frame.done

    def run_changed(self, run: Run) -> None:
        """Draw the newest Frame unless it belongs to the scan."""
        if run.last is None or self.result in run.last.arrays:
            super().run_changed(run)

    # -- drawing -------------------------------------------------------------------------------------------------

    def show_image(self, view: FrameView, caption: ipywidgets.HTML, index: int | None) -> None:
        """Show an image with its name and prediction; nothing for None and for an image without results."""
        if index is None or not self.is_scanned(index):
            view.layout.visibility, caption.value = "hidden", ""
            return
        view.show(self.full_image(index, FULL_IMAGE_SIDE))
        view.layout.visibility, view.alt = "visible", self.image_text(index)
        label = one_line(self.network.labels[self.scan.predictions[index]], MAX_NAME)
        prediction = self.network.output.describe(label, self.scan.probabilities[index])
        caption.value = text_html(view.alt) + text_html(f"Prediction: {prediction}")
        self.update_notices()

    def update_notices(self) -> None:
        """Show which images could not be read, and whether the results are stored."""
        skipped, missing, lines = self.scan.skipped, self.scan.missing, []
        if skipped:
            lines.append(f"{len(skipped)} of {self.scan.num_seen} images could not be read: {_join_first(skipped)}")
        if self.images.note:
            lines.append(self.images.note)
        if missing:
            lines.append(f"gray images: files deleted or changed since the scan ({_join_first(missing)}); create a new Scan")
        if not self.scan.persistent:
            lines.append("the results are not stored: the cache folder is not writable; CONVIS_CACHE can name another one")
        self.notices.value = "".join(map(text_html, lines))


def _join_first(reasons: dict[int, str]) -> str:
    return "; ".join(one_line(reason, MAX_REASON) for reason in list(reasons.values())[:MAX_NAMED_FILES])
