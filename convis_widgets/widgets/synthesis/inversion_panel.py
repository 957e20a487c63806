"""InversionPanel: reconstructions of an image from the activations of several layers."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets
import numpy as np

from ...core.runs.frame import Frame
from ...core.synthesis.default_layers import default_inversion_layers
from ...core.types import NetworkLike
from ...techniques import feature_inversion
from ..base.params import Param, knob_params
from ..default_images import MenuImages
from ..drawing.compose import draw_labels
from ..drawing.encode import enlarge, to_rgb_uint8
from .image_panel import ImagePanel

TILE_SIDE = 160  # pixels of an image
GAP, TITLE_HEIGHT = 10, 20  # pixels
TILES_PER_ROW = 5


class LayersParam(Param):
    """Names of layers, chosen from a list."""

    type_text = "str or sequence of str"

    def check(self, viewer: InversionPanel, value: Any) -> tuple[str, ...]:
        """Resolve the full names; ValueError if there is no such layer, or none at all."""
        names = self.to_names(value)
        if not names:
            raise ValueError(
                f"no layer is selected; give some, such as {', '.join(default_inversion_layers(viewer.network))}"
            )
        return tuple(viewer.network.layers[name].name for name in names)

    def make_control(self, viewer: InversionPanel) -> ipywidgets.Widget:
        """A list of layers with activation maps."""
        names = [layer.name for layer in viewer.network.layers if layer.map_shape is not None]
        return ipywidgets.SelectMultiple(options=names, rows=6, description=self.description)

    def sync(self, viewer: InversionPanel, control: ipywidgets.Widget) -> None:
        """Select the layers that are in the list."""
        value = tuple(name for name in viewer.layers if name in control.options)
        if control.value != value:
            control.value = value


class InversionPanel(ImagePanel):
    """Feature inversion: for each of several layers an image with the same activations as the given one, found from noise.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : image, list or dict of images, optional
        Images on the menu; bundled ones by default.

    Examples
    --------
    >>> panel = InversionPanel(layers=["relu1", "relu4"], iterations=20)
    >>> panel.run.join()
    True
    >>> panel.frame.arrays["inversions"].shape
    (2, 64, 64, 3)
    """

    linkable = ()  # it does not show units
    technique = feature_inversion
    extra_params = knob_params(feature_inversion)
    target_controls = ("images", "layers")
    main_knobs = ("iterations", "tv_weight", "alpha_weight", "lr")
    num_classes, image_side, default_curve = 0, TILE_SIDE, "features"
    composite = True
    crops = True
    layers = LayersParam((), "Layers to invert; up to six of increasing depth by default.", effect="recompute")

    def __init__(
        self,
        network: NetworkLike = None,
        images: MenuImages = None,
        layers: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, images, **kwargs)
        self.layers = default_inversion_layers(self.network) if layers is None else layers
        self.build()

    def image_parts(self) -> list[ipywidgets.Widget]:
        """The images and the table of errors."""
        self.table = ipywidgets.HTML()
        return [ipywidgets.VBox([self.view, self.table], layout={"max_width": "980px"})]

    # -- the computation ---------------------------------------------------------------------------------------

    def load_inputs(self) -> None:
        """Read the image."""
        self.original = self.input_image()
        self.table.value = ""

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs."""
        return feature_inversion(self.network, self.original, layers=self.layers, **knobs)

    # -- drawing -----------------------------------------------------------------------------------------------

    def frame_image(self, frame: Frame) -> np.ndarray:
        """All inversions, one below the other."""
        return np.concatenate([to_rgb_uint8(image) for image in frame.arrays["inversions"]])

    def displayed(self, image: np.ndarray) -> np.ndarray:
        """The original and the inversions, each below its name, in rows."""
        inversions = np.split(image, len(image) // len(self.original))
        tiles = [enlarge(pixels, TILE_SIDE) for pixels in (to_rgb_uint8(self.original), *inversions)]
        height, width = tiles[0].shape[0] + TITLE_HEIGHT, tiles[0].shape[1] + GAP
        rows = -(-(1 + len(self.layers)) // TILES_PER_ROW)
        sheet = np.zeros((rows * height, min(TILES_PER_ROW, 1 + len(self.layers)) * width - GAP, 4), np.uint8)
        titles = []
        for i, (tile, name) in enumerate(zip(tiles, ("original", *self.layers), strict=False)):
            y, x = i // TILES_PER_ROW * height, i % TILES_PER_ROW * width
            sheet[y + TITLE_HEIGHT : y + height, x : x + width - GAP, :3] = tile
            sheet[y + TITLE_HEIGHT : y + height, x : x + width - GAP, 3] = 255
            titles.append((x, y, name))
        return draw_labels(sheet, titles)

    def describe_image(self, frame: Frame, image: np.ndarray) -> None:
        """Show the errors of the newest Frame in a table."""
        super().describe_image(frame, image)
        titles = "layer", "error of the activations", "error of the pixels (uniform image: 100 %)"
        rows = [f"<tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>"]
        for name, errors in zip(self.layers, frame.arrays["errors"], strict=False):
            rows.append(f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{error:.1%}</td>' for error in errors)}</tr>")
        self.table.value = f"<table>{''.join(rows)}</table>"

    def caption_text(self) -> str:
        """Layers and image."""
        return f"inversion of {', '.join(self.layers)} for {self.images.menu.value}"
