"""TexturePanel: more of the same texture, in any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets

from ...core.network.network import Network
from ...core.runs.frame import Frame
from ...core.synthesis.budget import Workload
from ...core.synthesis.default_layers import default_style_layers
from ...core.synthesis.pyramid import MIN_SIDE, pyramid_sizes
from ...core.types import NetworkLike
from ...techniques import texture
from ..base.params import knob_params
from ..base.viewer import Panels
from ..controls.frame_view import FrameView
from ..controls.text import text_html
from ..default_images import MenuImages, default_styles
from .image_panel import ImagePanel

SAMPLE_SIDE = 192  # pixels of the sample on screen


class TexturePanel(ImagePanel):
    """Texture synthesis: an image grows from noise until its Gram matrices are those of a sample.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : image, list or dict of images, optional
        Samples on the menu; bundled patterns and images by default.

    Examples
    --------
    >>> panel = TexturePanel(size=96, scales=1, iterations=10)
    >>> panel.run.join()
    True
    >>> panel.frame.image.shape
    (96, 96, 3)
    """

    linkable = ()  # it does not show units
    technique = texture
    extra_params = knob_params(texture)
    main_knobs = ("size", "statistic", "scales", "iterations")
    num_classes, default_curve, menu_label = 0, "style", "sample"

    def __init__(self, network: NetworkLike = None, images: MenuImages = None, **kwargs: Any) -> None:
        super().__init__(network, images, **kwargs)
        self.build()

    @staticmethod
    def available_images(network: Network, image: Any) -> dict[str, Any]:
        """The samples on the menu, by name."""
        return dict(default_styles(network, image))

    def default_of(self, name: str) -> Any:
        """What is used where a knob is None: the sample has the size of the texture."""
        return super().default_of("size" if name == "sample_size" else name)

    def image_parts(self) -> list[ipywidgets.Widget]:
        """The sample beside the texture."""
        self.sample = FrameView("the sample")
        left = ipywidgets.VBox([ipywidgets.HTML(text_html("sample")), self.sample], layout={"margin": "0 16px 0 0"})
        return [left, ipywidgets.VBox([ipywidgets.HTML(text_html("texture")), self.view])]

    def load_inputs(self) -> None:
        """Show the sample."""
        self.sample.show(self.thumbnail(self.images.value, SAMPLE_SIDE))

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs."""
        side = knobs["sample_size"] or self.default_of("sample_size")
        sample = self.network.transform.uncropped_image(self.images.value, side)
        size = knobs["size"] or self.default_of("size")
        return texture(self.network, sample, **{**knobs, "sample_size": None, "size": size, "init_image": self.init_input})

    def workload(self, knobs: dict[str, Any]) -> list[Workload]:
        """One part for each scale."""
        size = (knobs["size"], knobs["size"]) if isinstance(knobs["size"], int) else tuple(knobs["size"])
        layers = default_style_layers(self.network).style
        sizes = pyramid_sizes(size, knobs["scales"], 2, MIN_SIDE)
        return [Workload(layers, scale, knobs["iterations"], knobs["optimizer"]) for scale in sizes]

    def caption_text(self) -> str:
        """What is synthesized, in words."""
        return f"same {'Gram matrices' if self.statistic == 'gram' else 'covariances'} as {self.images.menu.value}"

    def snapshot_panels(self) -> Panels:
        """The sample and the texture."""
        images, lines = super().snapshot_panels()
        return [("sample", self.thumbnail(self.images.value, SAMPLE_SIDE)), *images], lines
