"""DeepDreamPanel: a picture in which the network finds more and more of what it knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import traitlets

from ..core import SCORES, SMALLEST, Effort, Frame, palette, pyramid
from ..techniques import deep_dream
from .controls import ClassPicker, UnitPicker
from .gallery import named
from .picture_panel import PicturePanel
from .viewer import ClassTrait, guarded

KINDS = ("a layer", "a unit", "a class")
NONE = "none"


class DeepDreamPanel(PicturePanel):
    """DeepDream, live: a picture grows what a layer, a unit or a class answers to.

    Its knobs are those of `techniques.deep_dream`, as traits; live ones are obeyed while it dreams.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : picture, list or dict of pictures, optional
        The pictures to choose from; some that are always at hand otherwise.
    layer : str, optional
        The layer whose activations grow; a deep one otherwise.
    unit : Unit, optional
        Instead, a unit; linked, the one that is clicked in a FilterGrid or a MaxPatchGallery.
    target : int or str, optional
        Instead, a class.
    guide : str, optional
        A picture of the menu: the layer's output becomes like that of this picture.

    Examples
    --------
    >>> panel = DeepDreamPanel(layer="relu4")
    >>> panel.run.join()
    True
    >>> panel.frame.image.shape
    (128, 128, 3)
    """

    technique = deep_dream
    first = ("size", "octaves", "iterations", "rate")
    layer = traitlets.Any(None, allow_none=True, help="Name of the layer whose activations grow.")
    target = ClassTrait(None, help="Index or name of the class to dream of.")
    guide = traitlets.Unicode(NONE, help="Name of the picture that guides.")

    def __init__(
        self,
        network: Any = None,
        images: Any = None,
        layer: str | None = None,
        target: int | str | None = None,
        guide: str | None = None,
        **keywords: Any,
    ) -> None:
        if sum(one is not None for one in (layer, target, keywords.get("unit"))) > 1:
            raise ValueError("give one of layer=, unit= and target=")
        if guide not in (None, NONE) and (target is not None or keywords.get("unit") is not None):
            raise ValueError("a guide goes with a layer; leave unit= and target= out")
        self._asked_for = {"layer": layer, "target": target, "guide": guide}
        super().__init__(network, images, **keywords)

    def _question(self) -> list[ipywidgets.Widget]:
        names = [one.name for one in self.network.layers if one.maps is not None]
        self.kind = ipywidgets.Dropdown(options=KINDS, description="more of")
        self.layers = ipywidgets.Dropdown(options=names, description="layer")
        self.units, self.classes = UnitPicker(self.network.layers), ClassPicker(self.network.labels)
        self.guides = ipywidgets.Dropdown(options=[NONE, *self._at_hand], description="guided by")
        wanted = self._asked_for
        self.layer = wanted["layer"] or palette(self.network).things
        self.target = 0 if wanted["target"] is None else wanted["target"]
        if wanted["guide"] is not None:
            self.guide = wanted["guide"]
        self.kind.value = KINDS[1 if self.unit is not None else 2 if wanted["target"] is not None else 0]
        if self.unit is not None:
            self.units.value = self.unit
        for picker, name in ((self.layers, "layer"), (self.units, "unit"), (self.classes, "target"), (self.guides, "guide")):
            self._leads(picker, name)
        self.kind.observe(self._ask_anew, "value")
        return [*super()._question(), self.kind, self.layers, self.units, self.classes, self.guides]

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.validate("layer")
    def _layer_exists(self, proposal: dict[str, Any]) -> str:
        return self.network.layers[proposal["value"]].name

    @property
    def _class(self) -> int:
        return 0 if self.target is None else self.target

    @traitlets.validate("guide")
    def _guide_exists(self, proposal: dict[str, Any]) -> str:
        try:
            return NONE if proposal["value"] == NONE else named(proposal["value"], self._at_hand)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from None

    @traitlets.observe("layer", "unit", "target", "guide")
    @guarded
    def _asked_anew(self, change: Any) -> None:
        if change["name"] == "unit" and self.unit is None:
            return
        kinds = {"layer": KINDS[0], "guide": KINDS[0], "unit": KINDS[1], "target": KINDS[2]}
        with self.quietly():
            if change["name"] == "unit" and not self.unit.layer:
                self.target, self.kind.value = self.unit.channel, KINDS[2]
            else:
                self.kind.value = kinds[change["name"]]
        self._ask_anew()

    def _show_question(self) -> None:
        with self.quietly():
            self.layers.value, self.classes.value, self.guides.value = self.layer, self._class, self.guide
            if self.unit is not None and self.unit.layer:
                self.units.value = self.unit
        pickers = {KINDS[0]: (self.layers, self.guides), KINDS[1]: (self.units,), KINDS[2]: (self.classes,)}
        for kind, several in pickers.items():
            for picker in several:
                picker.layout.display = "" if kind == self.kind.value else "none"

    # -- the computation ---------------------------------------------------------------------------------------

    def _what(self) -> dict[str, Any]:
        if self.kind.value == KINDS[2]:
            return {"target": self._class}
        if self.kind.value == KINDS[1]:
            return {"of": self.units.value}
        return {"of": self.layer, "guide": None if self.guide == NONE else self._at_hand[self.guide]}

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        self._given = self.network.transform.whole(self.images.value, knobs["size"] or self._usual("size"))
        words = {**knobs, "size": None, "start": self._started}
        return deep_dream(self.network, self._given, **self._what(), **words)

    def _effort(self, knobs: dict[str, Any]) -> list[Effort]:
        what = self._what()
        layers = [SCORES] if "target" in what else [getattr(what["of"], "layer", what["of"])]
        sizes = pyramid(self._given.shape[:2], knobs["octaves"], knobs["octave_scale"], SMALLEST)
        return [Effort(layers, size, knobs["iterations"], "gradient") for size in sizes]

    def caption_text(self) -> str:
        """What is being painted, in words."""
        if self.kind.value == KINDS[2]:
            return f"more of {self.network.labels[self._class]}"
        if self.kind.value == KINDS[1]:
            unit = self.units.value
            return f"more of channel {unit.channel} of {unit.layer}"
        return f"more of {self.layer}" + ("" if self.guide == NONE else f", guided by {self.guide}")
