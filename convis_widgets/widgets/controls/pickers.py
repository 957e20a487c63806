"""Pickers: one class, one unit, one image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from PIL import Image

from ...core.memory import format_bytes
from ...core.network.image_file import is_image_file, open_image
from ...core.network.labels import match_labels, search_labels
from ...core.network.layers import Layers
from ...core.network.transform import Transform
from ...core.network.unit import Unit
from ...core.text import one_line
from ...core.types import ImageLike
from ..default_images import MAX_NAME, free_name, menu_name
from ..drawing.encode import blend, draw_box
from .frame_view import FrameView
from .parts import Parts
from .sliders import set_bounded

CROP_PREVIEW_SIDE = 72  # pixels, longer side
MAX_UPLOADED_BYTES = 100_000_000  # of all images uploaded to a picker


class ClassPicker(Parts, ipywidgets.HBox):
    """A class, found by typing part of its name.

    Parameters
    ----------
    labels : sequence of str
    description : str
        Label of the control.
    auto_label : str
        Text that stands for no class, None; "" if there is always a class.

    Attributes
    ----------
    value : int or None
        Index of the class; None for an automatic choice.
    """

    value = traitlets.Int(None, allow_none=True)
    AUTO = "most probable"

    def __init__(self, labels: Sequence[str], *, description: str = "class", auto_label: str = AUTO) -> None:
        self._auto_label = auto_label
        self._labels = labels
        self._options = [f"{i}  {one_line(label, MAX_NAME)}" for i, label in enumerate(labels)]
        self._other_matches: list[str] = []
        self.box = ipywidgets.Combobox(
            options=[*([auto_label] if auto_label else []), *self._options],
            placeholder="type to search",
            description=description,
            ensure_option=False,
            continuous_update=False,
        )
        self.hint = ipywidgets.Label("")
        super().__init__([self.box, self.hint])
        self.layout.align_items = "center"
        self.box.value = auto_label
        self.box.observe(self._on_text, "value")
        self.observe(self._show_value, "value")

    def find(self, text: str) -> int | None:
        """Index of a class by its entry on the menu, its label, its index, or the first label that contains the text.

        A label that several classes have in common names the first of them; the others are shown beside the field.

        Returns
        -------
        int, or None for an empty text or the one of an automatic choice

        Raises
        ------
        ValueError
            No class contains the text.
        """
        text = text.strip()
        self._other_matches = []
        if not text or text == self._auto_label:
            return None
        if text in self._options:
            return self._options.index(text)
        number = int(text) if text.isascii() and text.isdigit() else len(self._labels)
        if number < len(self._labels) and not match_labels(self._labels, text):
            return number
        matches = search_labels(self._labels, text)
        if matches:
            self._other_matches = [self._options[i] for i in matches[1:]]
            return matches[0]
        if text.casefold() == self._auto_label.casefold():
            return None
        raise ValueError(f"no class contains {text!r}")

    def _on_text(self, change: dict[str, Any]) -> None:
        try:
            value = self.find(change["new"])
        except ValueError as error:
            self.hint.value = str(error)
            return
        others = self._other_matches  # before the entry that is shown now is found
        self.value = value
        self._show_value()
        if others:
            self.hint.value = f"also: {', '.join(others[:3])}{f' and {len(others) - 3} more' if len(others) > 3 else ''}"

    def _show_value(self, _change: Any = None) -> None:
        self.hint.value = ""
        self.box.value = self._auto_label if self.value is None else self._options[self.value]


class UnitPicker(Parts, ipywidgets.HBox):
    """A channel of a layer, by menu and number.

    Parameters
    ----------
    layers : Layers
        Layers of the network; the menu lists those with activation maps.

    Attributes
    ----------
    value : Unit
        Has a position only if it was set with one.
    """

    value = traitlets.Instance(Unit)

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        names = [layer.name for layer in layers if layer.map_shape is not None]
        self.menu = ipywidgets.Dropdown(options=names, description="layer")
        self.number = ipywidgets.BoundedIntText(0, 0, 0, description="channel")
        self.number.layout.width = "150px"
        self.position = ipywidgets.Label("")
        super().__init__([self.menu, self.number, self.position])
        self.layout.align_items = "center"
        self.value = Unit(self.menu.value, 0)
        self.menu.observe(self._on_choice, "value")
        self.number.observe(self._on_choice, "value")

    def _on_choice(self, change: dict[str, Any]) -> None:
        if change["owner"] is self.menu and self.menu.value not in (None, self.value.layer):
            self.value = Unit(self.menu.value, 0)
        elif change["owner"] is self.number and self.number.value != self.value.channel:
            self.value = Unit(self.value.layer, self.number.value)

    @traitlets.observe("value")
    def _show_value(self, _change: Any) -> None:
        unit = self.value
        self.menu.value = unit.layer if unit.layer in self.menu.options else None
        set_bounded(self.number, self._layers[unit.layer].channels - 1, unit.channel)
        self.position.value = "" if unit.position is None else f"position {unit.position}"


class ImagePicker(Parts, ipywidgets.HBox):
    """An image, from a menu or uploaded, with a preview of the network's crop for image files.

    Uploaded images stay on the menu, under names of their own, up to `MAX_UPLOADED_BYTES`.

    Parameters
    ----------
    images : mapping of str to image
        Images by name, see `Network.image`.
    transform : Transform or None
        Transform of the network; None if image files are not cropped.
    show_error : callable(Exception)
        Called if an uploaded file cannot be read or there is no room for it; it is not added.

    Attributes
    ----------
    value : image
        The chosen image.
    """

    value = traitlets.Any()

    def __init__(
        self, images: Mapping[str, ImageLike], transform: Transform | None, show_error: Callable[[Exception], None]
    ) -> None:
        self.images = dict(images)
        self._transform, self._show_error = transform, show_error
        self._uploads: list[bytes] = []
        self.whole = FrameView("the whole image with a frame around the network's input")
        self.whole.layout.margin = "0 0 0 8px"
        self.menu = ipywidgets.Dropdown(options=list(self.images), description="image")
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Upload")
        self.upload.layout.width = "100px"
        super().__init__([self.menu, self.upload, self.whole])
        self.layout.align_items = "center"
        self.value = self.images[self.menu.value] if self.images else None
        self.menu.observe(self._on_menu, "value")
        self.upload.observe(self._uploaded, "value")

    def add(self, name: str, image: ImageLike) -> None:
        """Add an image to the menu, or replace the one of this name, and choose it."""
        self.images[name] = image
        self.menu.unobserve(self._on_menu, "value")  # with new options, a menu first chooses the first of them
        self.menu.options = list(self.images)
        self.menu.value = name
        self.menu.observe(self._on_menu, "value")
        self.value = image

    def choose(self, image: ImageLike) -> None:
        """Choose an image; it is added to the menu unless it is there already."""
        name = next((name for name, listed in self.images.items() if listed is image), None)
        self.add(menu_name(image, self.images) if name is None else name, image)

    def _on_menu(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            self.value = self.images[change["new"]]

    def _uploaded(self, change: dict[str, Any]) -> None:
        for file in change["new"]:
            try:
                self._add_uploaded(one_line(file["name"]), bytes(file["content"]))
            except Exception as error:  # noqa: BLE001 (shown)
                self._show_error(error)
        if change["new"]:
            self.upload.value = ()  # its copy of the file

    def _add_uploaded(self, name: str, content: bytes) -> None:
        open_image(content, name)  # ValueError if it is not an image
        same = next((listed for listed, image in self.images.items() if isinstance(image, bytes) and image == content), None)
        if same is None:
            check_uploads([*self._uploads, content])
            self._uploads.append(content)
        self.add(free_name(name, self.images) if same is None else same, content)

    @traitlets.observe("value")
    def _show_crop(self, _change: Any) -> None:
        preview = None
        if self._transform is not None and is_image_file(self.value):
            with contextlib.suppress(Exception):  # reported where the image is used
                opened = open_image(self.value)
                if not self._transform.is_prepared(self.value, opened):
                    preview = crop_preview(opened, self._transform)
        self.whole.layout.display = "none" if preview is None else ""
        if preview is not None:
            self.whole.show(preview)


def check_uploads(contents: Collection[bytes]) -> None:
    """Raise ValueError if uploaded files take more than `MAX_UPLOADED_BYTES` together."""
    total = sum(map(len, contents))
    if total > MAX_UPLOADED_BYTES:
        raise ValueError(
            f"the uploaded images would take {format_bytes(total)}, more than {format_bytes(MAX_UPLOADED_BYTES)}; make "
            "a new widget, or assign the path of a file"
        )


def crop_preview(image: Image.Image, transform: Transform) -> np.ndarray | None:
    """Small copy of an image with a frame around the network's crop, gray outside; None if the network sees all of it.

    Parameters
    ----------
    image : PIL image
    transform : Transform

    Returns
    -------
    (H, W, 3) uint8 array with a longer side of `CROP_PREVIEW_SIDE`, or None
    """
    left, top, right, bottom = transform.crop_box(*image.size)
    if right - left > image.width - 1 and bottom - top > image.height - 1:
        return None
    scale = CROP_PREVIEW_SIDE / max(image.size)
    small = np.asarray(image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size]))
    rows, cols = np.ogrid[: small.shape[0], : small.shape[1]]
    box = [scale * edge for edge in (top, left, bottom, right)]
    outside = (rows < box[0]) | (rows >= box[2]) | (cols < box[1]) | (cols >= box[3])
    return draw_box(blend(small, np.full_like(small, 128), 0.65 * outside), box, width=1)
