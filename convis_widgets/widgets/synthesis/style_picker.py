"""StylePicker: one to three styles from menus, with a weight each, or uploaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import traitlets

from ..controls.parts import Parts
from ..controls.sliders import equal_after_rounding

NONE = "none"
MAX_STYLES = 3
MIN_EXPONENT, MAX_EXPONENT = -1, 4  # of 10, for the weights


class StylePicker(Parts, ipywidgets.HBox):
    """One to three styles from menus, with a weight each, and a button to upload another one.

    Parameters
    ----------
    on_upload : callable(name, content)
        Called with the name and the bytes of an uploaded file, which is to take the place of the first style.

    Attributes
    ----------
    value : (tuple of str, tuple of float)
        Names and weights. After a style was added or removed, the weights are those of before.
    """

    value = traitlets.Tuple(((), ()))

    def __init__(self, on_upload: Callable[[str, bytes], None]) -> None:
        self._on_upload, self._showing = on_upload, False
        self.menus, self.sliders = [], []
        for i in range(MAX_STYLES):
            menu = ipywidgets.Dropdown(description=f"style {i + 1}", layout={"width": "250px"})
            ends = {"min": MIN_EXPONENT, "max": MAX_EXPONENT, "step": 0.001}
            slider = ipywidgets.FloatLogSlider(1.0, **ends, description="weight", layout={"width": "260px"})
            menu.observe(self._style_changed, "value")
            slider.observe(functools.partial(self._weight_changed, i), "value")
            self.menus.append(menu)
            self.sliders.append(slider)
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Upload a style")
        self.upload.layout.width = "150px"
        self.upload.observe(self._uploaded, "value")
        rows = [ipywidgets.HBox(pair) for pair in zip(self.menus, self.sliders, strict=True)]
        super().__init__([*rows, self.upload], layout={"flex_flow": "row wrap"})

    def show(self, names: Sequence[str], styles: tuple[str, ...], weights: tuple[float, ...]) -> None:
        """Show a choice, and a menu for one more style.

        Parameters
        ----------
        names : sequence of str
            Names on the menus.
        styles : tuple of str
        weights : tuple of float
        """
        self._showing = True
        try:
            for i, (menu, slider) in enumerate(zip(self.menus, self.sliders, strict=True)):
                options = (NONE, *names) if i else tuple(names)
                if menu.options != options:
                    menu.options = options
                menu.value = styles[i] if i < len(styles) else NONE
                slider.value = weights[min(i, len(weights) - 1)]
                slider.layout.visibility = "visible" if i < len(styles) else "hidden"
                menu.layout.display = slider.layout.display = "" if i <= len(styles) else "none"
            self.value = (styles, weights)
        finally:
            self._showing = False

    def _style_changed(self, _change: Any) -> None:
        if not self._showing:
            self.value = (tuple(menu.value for menu in self.menus if menu.value != NONE), self.value[1])

    def _weight_changed(self, i: int, change: dict[str, Any]) -> None:
        styles, weights = self.value
        if not self._showing and i < len(weights) and not equal_after_rounding(change["owner"], change["new"], weights[i]):
            self.value = (styles, (*weights[:i], change["new"], *weights[i + 1 :]))

    def _uploaded(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self.upload.value = ()  # its copy of the file
        for file in change["new"]:
            self._on_upload(file["name"], bytes(file["content"]))
