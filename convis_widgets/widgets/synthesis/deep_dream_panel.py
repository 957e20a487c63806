"""DeepDreamPanel: an image in which the patterns of a layer, a unit or a class are amplified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets

from ...core.runs.frame import Frame
from ...core.synthesis.budget import Workload
from ...core.synthesis.default_layers import default_style_layers
from ...core.synthesis.objectives import LOGITS
from ...core.synthesis.pyramid import MIN_SIDE, pyramid_sizes
from ...core.types import NetworkLike
from ...techniques import deep_dream
from ..base.params import Choice, LayerParam, Param, knob_params
from ..default_images import MenuImages, find_image
from .image_panel import ImagePanel
from .target_panel import TargetPanel

NO_GUIDE = "none"


class GuideParam(Param):
    """The name of an image on the menu, or "none"."""

    type_text = "str"

    def check(self, viewer: DeepDreamPanel, value: Any) -> str:
        """Resolve the name of a file without its extension."""
        return NO_GUIDE if value in (None, NO_GUIDE) else find_image(value, viewer.images.images)

    def make_control(self, viewer: DeepDreamPanel) -> ipywidgets.Widget:
        """A menu."""
        return ipywidgets.Dropdown(description=self.description)

    def sync(self, viewer: DeepDreamPanel, control: ipywidgets.Widget) -> None:
        """Set the options, which include uploaded images, and the value."""
        names = (NO_GUIDE, *viewer.images.images)
        if control.options != names:
            control.options = names
        control.value = viewer.guide


class DeepDreamPanel(TargetPanel, ImagePanel):
    """DeepDream: an image in which the patterns that a layer, a unit or a class detects are amplified.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : image, list or dict of images, optional
        Images on the menu; bundled ones by default.

    Examples
    --------
    >>> panel = DeepDreamPanel(layer="relu4", iterations=2)
    >>> panel.run.join()
    True
    >>> panel.frame.image.shape
    (128, 128, 3)
    """

    technique = deep_dream
    extra_params = knob_params(deep_dream)
    target_controls = ("images", "target_type", "layer", "unit", "target", "guide")
    main_knobs = ("size", "octaves", "iterations", "lr")

    target_type = Choice(
        "layer",
        {"a layer": "layer", "a unit": "unit", "a class": "class"},
        'What is amplified: "layer" for `layer`, "unit" for `unit`, "class" for `target`; by default the one that is given.',
        effect="recompute",
        label="amplify",
    )
    layer = LayerParam(
        lambda viewer: [layer.name for layer in viewer.network.layers if layer.map_shape is not None],
        "Name of the layer whose activations are amplified; a deep one by default.",
        default="",
        effect="layer_changed",
        when=lambda viewer: viewer.target_type == "layer",
    )
    guide = GuideParam(
        NO_GUIDE,
        "Name of an image on the menu, whose patterns are amplified if the target is a layer; or 'none'.",
        effect="layer_changed",
        when=lambda viewer: viewer.target_type == "layer",
    )

    def __init__(
        self,
        network: NetworkLike = None,
        images: MenuImages = None,
        layer: str | None = None,
        target: int | str | None = None,
        guide: str | None = None,
        **kwargs: Any,
    ) -> None:
        if sum(value is not None for value in (layer, target, kwargs.get("unit"))) > 1:
            raise ValueError("give one of layer=, unit= and target=")
        if guide not in (None, NO_GUIDE) and (target is not None or kwargs.get("unit") is not None):
            raise ValueError("a guide needs a layer; leave out unit= and target=")
        super().__init__(network, target, images=images, **kwargs)
        self.layer = layer or default_style_layers(self.network).deep_layer
        self.guide = guide
        self.build()

    def layer_changed(self) -> None:
        """Amplify the layer, or what it detects in the guide."""
        self.maximize("layer")

    # -- the computation ---------------------------------------------------------------------------------------

    def load_inputs(self) -> None:
        """Read the image."""
        self.content = self.scaled_image()

    @property
    def target_kwargs(self) -> dict[str, Any]:
        """The target and the guide, as keywords of the technique."""
        if self.target_type != "layer":
            return super().target_kwargs
        return {"objective": self.layer, "guide": None if self.guide == NO_GUIDE else self.images.images[self.guide]}

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs; the image has its size already."""
        kwargs = {**knobs, **self.target_kwargs, "size": None, "init_image": self.init_input}
        return deep_dream(self.network, self.content, **kwargs)

    def workload(self, knobs: dict[str, Any]) -> list[Workload]:
        """One part for each octave."""
        layer = {"layer": self.layer, "unit": self.layer_unit.layer, "class": LOGITS}[self.target_type]
        sizes = pyramid_sizes(self.content.shape[:2], knobs["octaves"], knobs["octave_scale"], MIN_SIDE)
        return [Workload([layer], size, knobs["iterations"], "gradient") for size in sizes]

    def target_text(self) -> str:
        """What is amplified, in words."""
        if self.target_type != "layer":
            return super().target_text()
        return self.layer if self.guide == NO_GUIDE else f"{self.layer}, guided by {self.guide}"

    def caption_text(self) -> str:
        """What is amplified, in words."""
        return f"amplified: {self.target_text()}"
