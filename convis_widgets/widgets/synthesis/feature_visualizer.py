"""FeatureVisualizer: an image that maximizes a class or a unit, while it grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...core.runs.frame import Frame
from ...core.synthesis.presets import preset_settings
from ...core.types import NetworkLike
from ...techniques import gradient_ascent
from ..base.params import KnobParam, knob_params
from .target_panel import TargetPanel


class FeatureVisualizer(TargetPanel):
    """Gradient ascent: an image grows from noise that maximizes a class, a channel or a unit.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.

    Examples
    --------
    >>> visualizer = FeatureVisualizer(target="star", iterations=20)
    >>> visualizer.run.join()
    True
    >>> visualizer.frame.image.shape
    (64, 64, 3)
    """

    technique = gradient_ascent
    extra_params = knob_params(gradient_ascent, leave_out=["preset"])
    target_controls = ("target_type", "target", "unit")
    main_knobs = ("preset", "lr", "iterations")
    preset = KnobParam.of(gradient_ascent, "preset", effect="preset_changed")

    def __init__(self, network: NetworkLike = None, target: int | str | None = None, **kwargs: Any) -> None:
        if target is not None and kwargs.get("unit") is not None:
            raise ValueError("give target= (a class) or unit= (any other unit), not both")
        super().__init__(network, target, **kwargs)
        self.build()

    def default_of(self, name: str) -> Any:
        """What is used where a Param is None: for a knob what the preset has."""
        return super().default_of(name) if name == "unit" else preset_settings(self.preset)[name]

    def preset_changed(self) -> None:
        """Set all knobs of the preset and start again."""
        with self.handlers_muted():
            for name in self.knob_names:
                if name != "seed":
                    setattr(self, name, None)
        self.sync_controls()
        self.recompute()

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs."""
        return gradient_ascent(self.network, **self.target_kwargs, preset=self.preset, init_image=self.init_image, **knobs)

    def caption_text(self) -> str:
        """The target and the preset."""
        return f"{self.target_text()}, preset {self.preset}"
