"""StyleTransferPanel: what is in one picture, painted as others are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import SMALLEST, Effort, Frame, knobs_of, open_photo, palette, pyramid
from ..techniques import style_transfer
from .controls import note, rounded
from .frame_view import FrameView
from .gallery import named
from .gallery import paintings as paintings_of
from .picture_panel import PicturePanel
from .viewer import guarded

NONE = "none"
MANY = 3  # styles that can be blended
WEIGHT = style_transfer.__wrapped__.__kwdefaults__["style_weights"]
THUMBNAIL = 128  # pixels


class StyleTransferPanel(PicturePanel):
    """Style transfer, live: the content of one picture in the style of another, or of up to three.

    Its knobs are those of `techniques.style_transfer`, as traits; the weights may be moved while it paints.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : picture, list or dict of pictures, optional
        The contents to choose from; some that are always at hand otherwise.
    paintings : picture, list or dict of pictures, optional
        The styles to choose from; some patterns and pictures that are always at hand otherwise.
    styles : str or sequence of str, optional
        Names on the menu of styles; the first one otherwise.
    style_weights : float or tuple of float
        Weight of each style, or the same for all.

    Examples
    --------
    >>> panel = StyleTransferPanel(styles="swirls", size=64, sizes=1, iterations=10)
    >>> panel.run.join()
    True
    >>> panel.frame.image.shape
    (64, 64, 3)
    """

    technique = style_transfer
    first = ("size", "content_weight", "tv_weight", "style_scale", "original_colors")
    top, watched, asked = 0, "loss", "content"
    styles = traitlets.Any((), help="Names of the styles.")
    style_weights = traitlets.Any((), help="The weight of each style.")

    def __init__(
        self,
        network: Any = None,
        images: Any = None,
        paintings: Any = None,
        styles: Any = None,
        style_weights: Any = None,
        **keywords: Any,
    ) -> None:
        self._asked_for = (paintings, styles, style_weights)
        super().__init__(network, images, **keywords)

    def _question(self) -> list[ipywidgets.Widget]:
        given, styles, weights = self._asked_for
        self.paintings = paintings_of(self.network, given)
        self.menus, self.weights = [], []
        for i in range(MANY):
            names = [NONE, *self.paintings] if i else list(self.paintings)
            menu = ipywidgets.Dropdown(options=names, description=f"style {i + 1}", layout={"width": "250px"})
            slider = ipywidgets.FloatLogSlider(WEIGHT, min=-1, max=4, step=0.001, description="weight")
            slider.layout.width = "260px"
            self.menus.append(menu)
            self.weights.append(slider)
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Upload a style")
        self.upload.layout.width = "150px"
        self.styles = self._several(next(iter(self.paintings)) if styles is None else styles)
        self.style_weights = self._several(WEIGHT if weights is None else weights, len(self.styles))
        for control in (*self.menus, *self.weights):
            control.observe(self._chosen, "value")
        self.upload.observe(self._uploaded, "value")
        rows = [ipywidgets.HBox(pair) for pair in zip(self.menus, self.weights, strict=True)]
        return [*super()._question(), ipywidgets.HBox([*rows, self.upload], layout={"flex_flow": "row wrap"})]

    def _pictures(self) -> list[ipywidgets.Widget]:
        self.content, self.thumbnails = FrameView("the content"), [FrameView() for _ in range(MANY)]
        for view in self.thumbnails:
            view.layout.margin = "0 0 6px 0"
        stack = [ipywidgets.HTML(note("content")), self.content, ipywidgets.HTML(note("style")), *self.thumbnails]
        return [ipywidgets.VBox(stack, layout={"margin": "0 16px 0 0"}), self.view]

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.validate("styles")
    def _styles_exist(self, proposal: dict[str, Any]) -> tuple[str, ...]:
        names = self._several(proposal["value"])
        if not 1 <= len(names) <= MANY:
            raise traitlets.TraitError(f"{len(names)} styles were given; give one to {MANY} of {', '.join(self.paintings)}")
        try:
            return tuple(named(name, self.paintings) for name in names)
        except ValueError as error:
            raise traitlets.TraitError(str(error).replace("no picture", "no style")) from None

    @traitlets.validate("style_weights")
    def _weights_fit(self, proposal: dict[str, Any]) -> tuple[float, ...]:
        weights = self._several(proposal["value"], len(self.styles))
        knob = knobs_of(style_transfer)["style_weights"]
        try:
            knob.check("style_weights", weights)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None
        if len(weights) != len(self.styles):
            raise traitlets.TraitError(f"there are {len(weights)} weights for {len(self.styles)} styles; give one for each")
        return weights

    @staticmethod
    def _several(value: Any, count: int = 1) -> tuple[Any, ...]:
        """What was given, as a tuple: one thing stands for each."""
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * count

    @traitlets.observe("styles")
    @guarded
    def _other_styles(self, change: Any) -> None:
        weights = self.style_weights
        with self.quietly():
            if len(weights) > len(self.styles):  # those that stay keep theirs
                kept = dict(zip(change["old"], weights, strict=True))
                weights = [kept.get(name, weight) for name, weight in zip(self.styles, weights, strict=False)]
            self.style_weights = (*weights, *[weights[-1]] * (len(self.styles) - len(weights)))
        self._ask_anew()

    @traitlets.observe("style_weights")
    @guarded
    def _other_weights(self, _change: Any) -> None:
        self._show_question()
        if self.run is not None and self.run.active:
            self.run.send(style_weights=self.style_weights)

    @guarded
    def _chosen(self, change: Any) -> None:
        if change["owner"] in self.menus:
            self.styles = tuple(menu.value for menu in self.menus if menu.value != NONE)
        else:
            weights, i = list(self.style_weights), self.weights.index(change["owner"])
            if i < len(weights) and not rounded(change["owner"], change["new"], weights[i]):
                self.style_weights = (*weights[:i], change["new"], *weights[i + 1 :])  # a slider knows no 0

    @guarded
    def _uploaded(self, change: Any) -> None:
        for file in change["new"]:
            content = bytes(file["content"])
            open_photo(content, file["name"])
            self.paintings[file["name"]] = content
            with self.quietly():
                for i, menu in enumerate(self.menus):
                    menu.options = [NONE, *self.paintings] if i else list(self.paintings)
            styles = (file["name"], *self.styles[1:])
            if styles == self.styles:  # another picture under the name of the one before
                self._ask_anew()
            self.styles = styles

    def _show_question(self) -> None:
        with self.quietly():
            for i, (menu, slider, view) in enumerate(zip(self.menus, self.weights, self.thumbnails, strict=True)):
                there = i < len(self.styles)
                menu.value = self.styles[i] if there else NONE
                slider.value = self.style_weights[i] if there else WEIGHT
                slider.layout.visibility = "visible" if there else "hidden"
                menu.layout.display = "" if i <= len(self.styles) else "none"
                slider.layout.display = menu.layout.display
                view.layout.display = "" if there else "none"

    # -- the computation ---------------------------------------------------------------------------------------

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        self._given = self.network.transform.whole(self.images.value, knobs["size"] or self._usual("size"))
        words = {**knobs, "size": None, "start": self._started}
        styles = [self.paintings[name] for name in self.styles]
        for view, painting, name in zip(self.thumbnails, styles, self.styles, strict=False):
            view.show(self._whole(painting, THUMBNAIL))
            view.alt = f"the style {name}"
        self.content.show(self._whole(self.images.value, THUMBNAIL))
        return style_transfer(self.network, self._given, styles, style_weights=self.style_weights, **words)

    def _effort(self, knobs: dict[str, Any]) -> list[Effort]:
        found = palette(self.network)
        sizes = pyramid(self._given.shape[:2], knobs["sizes"], 2, SMALLEST)
        return [Effort((*found.style, found.content), size, knobs["iterations"], knobs["optimizer"]) for size in sizes]

    def caption_text(self) -> str:
        """What is being painted, in words."""
        return f"{self.images.menu.value} in the style of {' and '.join(self.styles)}"

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        panels, lines = super()._page()
        given = [("content", self.images.value), *((name, self.paintings[name]) for name in self.styles)]
        return [*((name, self._whole(picture, THUMBNAIL)) for name, picture in given), *panels], lines
