"""TargetPanel: the base of the panels that maximize a class or a unit."""

from __future__ import annotations

from typing import Any

from ...core.network.unit import Unit
from ...core.types import NetworkLike
from ..base.params import Choice, ClassParam, UnitParam
from .synthesis_panel import SynthesisPanel


class TargetPanel(SynthesisPanel):
    """Base of the panels that maximize a class or a unit. Setting `target` or `unit` sets `target_type`, too.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.

    Attributes
    ----------
    layer_unit : Unit
        The unit that is maximized if `target_type` is "unit": the last one of a layer that was selected.
    """

    target_type = Choice(
        "class",
        {"a class": "class", "a unit": "unit"},
        'What is maximized: "class" for `target`, "unit" for `unit`; by default the one that is given.',
        effect="recompute",
        label="maximize",
    )
    target = ClassParam(
        0,
        "Index or label of the class that is maximized.",
        auto_label="",
        effect="target_changed",
        when=lambda viewer: viewer.target_type == "class",
    )
    unit = UnitParam(
        None,
        "The unit that is maximized: a channel or, with a position, one unit. A class logit sets `target`.",
        picker=True,
        effect="unit_changed",
        when=lambda viewer: viewer.target_type == "unit",
    )

    def __init__(self, network: NetworkLike = None, target: int | str | None = None, **kwargs: Any) -> None:
        super().__init__(network, target=target, **kwargs)
        self.layer_unit = Unit(next(layer.name for layer in self.network.layers if layer.map_shape is not None), 0)
        if target is not None:
            self.target_type = "class"
        self._follow_unit()
        self.target_type = kwargs.get("target_type", self.target_type)

    def default_of(self, name: str) -> Any:
        """What is used where a Param is None."""
        return self.layer_unit if name == "unit" else super().default_of(name)

    def target_changed(self) -> None:
        """Maximize the class."""
        self.maximize("class")

    def unit_changed(self) -> None:
        """Maximize the unit."""
        if self.unit is not None:
            self._follow_unit()
            self.maximize(self.target_type)

    def maximize(self, target_type: str) -> None:
        """Start the computation with a target of this type."""
        with self.handlers_muted():
            self.target_type = target_type
        self.sync_controls()
        self.recompute()

    def _follow_unit(self) -> None:
        """Let the target be the selected unit, if any."""
        unit = self.unit
        with self.handlers_muted():
            if unit is not None and unit.layer:
                self.layer_unit, self.target_type = unit, "unit"
            elif unit is not None:
                self.target, self.target_type = unit.channel, "class"

    @property
    def target_kwargs(self) -> dict[str, Any]:
        """The target, as a keyword of the technique."""
        return {"target": self.target} if self.target_type == "class" else {"objective": self.layer_unit}

    def target_text(self) -> str:
        """The target in words."""
        if self.target_type == "class":
            return self.network.labels[self.target]
        unit = self.layer_unit
        return f"channel {unit.channel} of {unit.layer}{'' if unit.position is None else f' at {unit.position}'}"
