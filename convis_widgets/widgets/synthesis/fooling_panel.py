"""FoolingPanel: an image that is changed until the network predicts another class, and the change, magnified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets
import numpy as np

from ...core.runs.frame import Frame
from ...core.types import NetworkLike
from ...techniques import fooling
from ..base.params import ClassParam, knob_params
from ..base.viewer import Panels
from ..controls.frame_view import FrameView
from ..controls.text import text_html
from ..default_images import MenuImages
from ..drawing.encode import enlarge, to_rgb_uint8
from .image_panel import ImagePanel
from .synthesis_panel import show_or_stream

SHOWN_QUANTILE = 0.995  # of the differences are within the range of colors


class FoolingPanel(ImagePanel):
    """Adversarial images: the original, an image that the network takes for another class, and their difference, magnified.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : image, list or dict of images, optional
        Images on the menu; bundled ones by default.

    Examples
    --------
    >>> panel = FoolingPanel(target="cup", lr=0.005, iterations=100)
    >>> panel.run.join()
    True
    >>> panel.frame.scalars["fooled"]
    1.0
    """

    linkable = ()  # it does not show units
    technique = fooling
    extra_params = knob_params(fooling)
    target_controls = ("images", "target")
    main_knobs = ("method", "lr", "epsilon", "iterations")
    image_side, default_curve = 256, "target"
    crops = True
    target = ClassParam(
        None,
        "Index or label of the class to predict; the least probable one by default.",
        label="target class",
        auto_label="least probable",
    )

    def __init__(self, network: NetworkLike = None, images: MenuImages = None, **kwargs: Any) -> None:
        super().__init__(network, images, **kwargs)
        self.build()

    def image_parts(self) -> list[ipywidgets.Widget]:
        """The three images."""
        self.original_view, self.difference_view = FrameView(), FrameView()
        self.captions = [ipywidgets.HTML() for _ in range(3)]
        views = zip(self.captions, (self.original_view, self.view, self.difference_view), strict=True)
        layout = {"width": f"{self.image_side + 4}px", "margin": "0 8px 0 0"}
        return [ipywidgets.VBox([caption, view], layout=layout) for caption, view in views]

    # -- the computation ---------------------------------------------------------------------------------------

    def load_inputs(self) -> None:
        """Show the original, also as the adversarial image; it stays if the network predicts the target already."""
        original = self.original = to_rgb_uint8(self.input_image())
        self.frame = None
        self.bars.value = self.captions[1].value = self.captions[2].value = ""
        self.draw_image(lambda: original)
        self.original_view.show(enlarge(original, self.image_side))
        prediction = self.network.predict(self.in_channels(original), 1)[0]
        self.captions[0].value = text_html(f"original: {self.network.output.describe(*prediction)}")
        self.original_view.alt = f"the original image, {prediction[0]}"

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs."""
        return fooling(self.network, self.in_channels(self.original), target=self.target, **knobs)

    # -- drawing -----------------------------------------------------------------------------------------------

    def draw_image(self, image: Callable[[], np.ndarray], *, streaming: bool = False) -> None:
        """Show an image of the history and its difference from the original."""
        super().draw_image(image, streaming=streaming)
        original = self.original

        def difference() -> np.ndarray:
            return enlarge(magnify_difference(image(), original)[0], self.image_side)

        show_or_stream(self.difference_view, difference, streaming=streaming)

    def describe_image(self, frame: Frame, image: np.ndarray) -> None:
        """Show the prediction for the image on screen, and the size of the difference."""
        super().describe_image(frame, image)
        difference = (image.astype(np.float64) - self.original)[..., : self.network.transform.channels]
        factor = magnify_difference(image, self.original)[1]
        largest, norm = int(np.abs(difference).max()), np.sqrt((difference**2).sum()) / 255
        self.captions[1].value = text_html(f"adversarial: {self.network.output.describe(*self.predictions[0])}")
        self.captions[2].value = text_html(f"difference x {factor}; Linf {largest}/255, L2 {norm:.2g}")
        self.difference_view.alt = f"the difference of the two images, x {factor}; at most {largest} of 255"

    def caption_text(self) -> str:
        """The target class, and whether the network predicts it."""
        text = f"target: {'the least probable class' if self.target is None else self.network.labels[self.target]}"
        if self.frame is None or self.run is None or self.run.last is not self.frame:
            return text
        steps = f"{self.frame.step} step{'s' if self.frame.step > 1 else ''}"
        return f"{text}; {'fooled' if self.frame.scalars['fooled'] else 'not fooled'} after {steps}"

    def snapshot_panels(self) -> Panels:
        """The three images."""
        if self.frame is None:
            return super().snapshot_panels()
        image = self.shown_image(self.frame)
        difference, factor = magnify_difference(image, self.original)
        images = (("original", self.original), (self.shown_step.value, image), (f"difference x {factor}", difference))
        panels = [(title, enlarge(pixels, self.image_side)) for title, pixels in images]
        return panels, [f"{self.network.name}: {self.drawn_caption}"]


def magnify_difference(image: np.ndarray, original: np.ndarray) -> tuple[np.ndarray, int]:
    """The difference of two uint8 images, multiplied and centered at gray, and the factor.

    Examples
    --------
    >>> original = np.full((2, 2, 3), 50, np.uint8)
    >>> difference, factor = magnify_difference(original + np.uint8(3), original)
    >>> difference[0, 0].tolist(), factor
    ([253, 253, 253], 42)
    """
    difference = image.astype(np.int16) - original
    factor = max(1, int(127 // max(1, np.quantile(np.abs(difference), SHOWN_QUANTILE))))
    return (127.5 + factor * difference).clip(0, 255).astype(np.uint8), factor
