"""StyleTransferPanel: the content of an image in the style of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets

from ...core.network.image_file import open_image
from ...core.network.network import Network
from ...core.runs.frame import Frame
from ...core.synthesis.budget import Workload
from ...core.synthesis.default_layers import default_style_layers
from ...core.synthesis.pyramid import MIN_SIDE, pyramid_sizes
from ...core.types import NetworkLike
from ...techniques import style_transfer
from ..base.param_box import report_errors
from ..base.params import KnobParam, Param, knob_params
from ..base.viewer import Panels
from ..controls.frame_view import FrameView
from ..controls.pickers import check_uploads
from ..controls.text import text_html
from ..default_images import MenuImages, default_styles, find_image, free_name
from .image_panel import ImagePanel
from .style_picker import MAX_STYLES, StylePicker

THUMBNAIL_SIDE = 128  # pixels


class StylesParam(Param):
    """One to three names on the menu of styles. Its control shows the weights as well."""

    type_text = "str or sequence of str"

    def check(self, viewer: StyleTransferPanel, value: Any) -> tuple[str, ...]:
        """Resolve the names of files without their extension."""
        names = self.to_names(value)
        if not 1 <= len(names) <= MAX_STYLES:
            raise ValueError(f"{len(names)} styles were given; give 1 to {MAX_STYLES} of {', '.join(viewer.style_images)}")
        return tuple(find_image(name, viewer.style_images, kind="style") for name in names)

    def make_control(self, viewer: StyleTransferPanel) -> ipywidgets.Widget:
        """Menus and sliders."""
        return StylePicker(viewer.style_uploaded)

    def shown(self, viewer: StyleTransferPanel) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Names and weights."""
        return viewer.styles, viewer.style_weights

    def assign(self, viewer: StyleTransferPanel, value: tuple[tuple[str, ...], tuple[float, ...]]) -> None:
        """Set the names, whose weights follow, or the weights."""
        styles, weights = value
        if styles != viewer.styles:
            viewer.styles = styles
        else:
            viewer.style_weights = weights

    def sync(self, viewer: StyleTransferPanel, control: ipywidgets.Widget) -> None:
        """Show names and weights, and the names of uploaded styles on the menus."""
        control.show(list(viewer.style_images), *self.shown(viewer))


class StyleWeightsParam(KnobParam):
    """A weight for each style. It has no control of its own."""

    def check(self, viewer: StyleTransferPanel, value: Any) -> tuple[float, ...]:
        """Convert to one weight for each style."""
        value = self.default_value if value is None else value
        weights = tuple(value) if isinstance(value, (tuple, list)) else (value,) * len(viewer.styles)
        super().check(viewer, weights)
        if len(weights) != len(viewer.styles):
            raise ValueError(f"there are {len(weights)} weights for {len(viewer.styles)} styles; give one for each")
        return weights

    def make_control(self, viewer: StyleTransferPanel) -> None:
        """The control of the styles shows the weights."""


class StyleTransferPanel(ImagePanel):
    """Style transfer: the content of one image in the style of another, or of up to three.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : image, list or dict of images, optional
        Content images on the menu; bundled ones by default.
    style_images : image, list or dict of images, optional
        Styles on the menu; bundled patterns and images by default.

    Examples
    --------
    >>> panel = StyleTransferPanel(styles="swirls", size=64, scales=1, iterations=10)
    >>> panel.run.join()
    True
    >>> panel.frame.image.shape
    (64, 64, 3)
    """

    linkable = ()  # it does not show units
    technique = style_transfer
    extra_params = knob_params(style_transfer, leave_out=["style_weights"])
    target_controls = ("images", "styles")
    main_knobs = ("size", "content_weight", "tv_weight", "style_scale", "original_colors")
    num_classes, default_curve, menu_label = 0, "loss", "content"

    styles = StylesParam((), "Names of one to three styles on the menu; the first one by default.", effect="styles_changed")
    style_weights = StyleWeightsParam.of(style_transfer, "style_weights")

    def __init__(
        self,
        network: NetworkLike = None,
        images: MenuImages = None,
        style_images: MenuImages = None,
        styles: str | Sequence[str] | None = None,
        style_weights: float | Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        network = Network.ensure(network)
        self.style_images = dict(default_styles(network, style_images))
        super().__init__(network, images, **kwargs)
        self.styles = next(iter(self.style_images)) if styles is None else styles
        self.style_weights = style_weights
        self._weighted_styles = self.styles  # those that the weights belong to
        self.build()

    def image_parts(self) -> list[ipywidgets.Widget]:
        """Content and styles, and beside them the result."""
        self.content_view, self.thumbnails = FrameView("the content"), [FrameView() for _ in range(MAX_STYLES)]
        for view in self.thumbnails:
            view.layout.margin = "0 0 6px 0"
        titles = [ipywidgets.HTML(text_html(title)) for title in ("content", "style")]
        inputs = [titles[0], self.content_view, titles[1], *self.thumbnails]
        return [ipywidgets.VBox(inputs, layout={"margin": "0 16px 0 0"}), self.view]

    # -- state -------------------------------------------------------------------------------------------------

    def styles_changed(self) -> None:
        """Adapt the weights and start again: the remaining styles keep theirs, another one gets the last."""
        weights = self.style_weights
        if len(weights) > len(self.styles):
            kept = dict(zip(self._weighted_styles, weights, strict=True))
            weights = tuple(kept.get(name, weight) for name, weight in zip(self.styles, weights, strict=False))
        self._weighted_styles = self.styles
        with self.handlers_muted():
            self.style_weights = (*weights, *[weights[-1]] * (len(self.styles) - len(weights)))
        self.sync_controls()
        self.recompute()

    @report_errors
    def style_uploaded(self, name: str, content: bytes) -> None:
        """Put an image file on the menus and make it the first style."""
        open_image(content, name)  # ValueError if it is not an image
        check_uploads([*(image for image in self.style_images.values() if isinstance(image, bytes)), content])
        name = free_name(name, self.style_images)
        self.style_images[name] = content
        self.styles = (name, *self.styles[1:])

    # -- the computation ---------------------------------------------------------------------------------------

    def load_inputs(self) -> None:
        """Read the content image; show it and the styles."""
        self.content = self.scaled_image()
        for i, view in enumerate(self.thumbnails):
            view.layout.display = "" if i < len(self.styles) else "none"
        for name, view in zip(self.styles, self.thumbnails, strict=False):
            view.show(self.thumbnail(self.style_images[name], THUMBNAIL_SIDE))
            view.alt = f"the style {name}"
        self.content_view.show(self.thumbnail(self.images.value, THUMBNAIL_SIDE))

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs; the content image has its size already."""
        styles = [self.style_images[name] for name in self.styles]
        kwargs = {**knobs, "style_weights": self.style_weights, "size": None, "init_image": self.init_input}
        return style_transfer(self.network, self.content, styles, **kwargs)

    def workload(self, knobs: dict[str, Any]) -> list[Workload]:
        """One part for each scale."""
        layers = default_style_layers(self.network)
        sizes = pyramid_sizes(self.content.shape[:2], knobs["scales"], 2, MIN_SIDE)
        return [Workload((*layers.style, layers.content), size, knobs["iterations"], knobs["optimizer"]) for size in sizes]

    def caption_text(self) -> str:
        """Content and styles."""
        return f"{self.images.menu.value} in the style of {' and '.join(self.styles)}"

    def snapshot_panels(self) -> Panels:
        """Content, styles and result."""
        panels, lines = super().snapshot_panels()
        inputs = [("content", self.images.value), *((name, self.style_images[name]) for name in self.styles)]
        return [*((title, self.thumbnail(image, THUMBNAIL_SIDE)) for title, image in inputs), *panels], lines
