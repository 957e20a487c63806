"""FeatureVisualizer: an image that maximizes a class or a unit, while it grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...core.dataset.scan import Scan
from ...core.network.unit import Unit
from ...core.runs.frame import Frame
from ...core.synthesis.presets import preset_settings
from ...core.types import ImagesLike, NetworkLike
from ...techniques import gradient_ascent, max_patches
from ..base.params import Choice, KnobParam, knob_params
from .target_panel import TargetPanel

STARTS = {"noise": "", "mean": "from the mean image", "patch": "from its strongest patch"}


class FeatureVisualizer(TargetPanel):
    """Gradient ascent: an image grows from noise that maximizes a class, a channel or a unit.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : Scan, or anything that `Scan.ensure` accepts, optional
        Images in which the strongest patch of a unit is found, for ``init="patch"``; by default those of a linked widget.

    Examples
    --------
    >>> visualizer = FeatureVisualizer(target="star", iterations=20)
    >>> visualizer.run.join()
    True
    >>> visualizer.frame.image.shape
    (64, 64, 3)
    """

    technique = gradient_ascent
    extra_params = knob_params(gradient_ascent, leave_out=["preset", "init"])
    target_controls = ("target_type", "target", "unit", "init")
    main_knobs = ("preset", "lr", "iterations")
    preset = KnobParam.of(gradient_ascent, "preset", effect="preset_changed")
    init = Choice(
        None,
        {"noise": "noise", "the mean image": "mean", "its strongest patch": "patch"},
        'The initial image: "noise"; "mean", the mean pixel everywhere; "patch", the strongest patch of the unit in scanned '
        "images. That of the preset by default.",
        effect="recompute",
        label="start from",
    )

    def __init__(
        self,
        network: NetworkLike = None,
        target: int | str | None = None,
        images: ImagesLike | None = None,
        **kwargs: Any,
    ) -> None:
        if target is not None and kwargs.get("unit") is not None:
            raise ValueError("give target= (a class) or unit= (any other unit), not both")
        super().__init__(images.net if network is None and isinstance(images, Scan) else network, target, **kwargs)
        self.scan = None if images is None else Scan.ensure(self.network, images)
        self.build()

    def default_of(self, name: str) -> Any:
        """What is used where a Param is None: for a knob what the preset has."""
        if name == "unit":
            return super().default_of(name)
        return preset_settings(self.preset, is_class=self.target_type == "class")[name]

    def preset_changed(self) -> None:
        """Set all knobs of the preset and start again."""
        with self.handlers_muted():
            for name in (*self.knob_names, "init"):
                if name != "seed":
                    setattr(self, name, None)
        self.sync_controls()
        self.recompute()

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs."""
        init, init_image = self.init, self.init_image
        if init == "patch":
            init, init_image = None, self.strongest_patch() if init_image is None else init_image
        knobs = {**knobs, "preset": self.preset, "init": init, "init_image": init_image}
        return gradient_ascent(self.network, **self.target_kwargs, **knobs)

    def strongest_patch(self) -> np.ndarray:
        """The patch of the scanned images that activates the unit most, on the mean image, (H, W, C) in [0, 1]."""
        if self.target_type == "class":
            raise ValueError("a class has no strongest patch; start from noise or the mean image")
        scan = self.scan or self._linked_scan()
        if scan is None or not scan.complete:
            missing = "a scan of images" if scan is None else "the scan to be complete"
            raise ValueError(f"the strongest patch needs {missing}; link a MaxPatchGallery, or give images=Scan(...)")
        unit = self.layer_unit
        *_, frame = max_patches(self.network, scan, unit=Unit(unit.layer, unit.channel), k=1, projection="none")
        if not len(frame.arrays["boxes"]):
            raise ValueError(f"no scanned image has a finite activation of {self.target_text()}; start from noise")
        top, left, bottom, right = frame.arrays["boxes"][0]
        image = np.empty((*self.network.transform.size, self.network.transform.channels), np.float32)
        image[:] = self.network.transform.mean_pixel
        image[top:bottom, left:right] = np.nan_to_num(frame.arrays["patches"][0, : bottom - top, : right - left], nan=0.5)
        stride = self.network.layers[unit.layer].stride
        if unit.position is not None and stride is not None:
            row, column = frame.arrays["positions"][0]
            shift = ((unit.position[0] - row) * stride[0], (unit.position[1] - column) * stride[1])
            image = np.roll(image, shift, (0, 1))
        return image

    def _linked_scan(self) -> Scan | None:
        """The Scan of a linked widget, if any."""
        linked = (viewer for connection in self._links for viewer, _ in (connection.source, connection.target))
        return next((scan for viewer in linked if isinstance(scan := getattr(viewer, "scan", None), Scan)), None)

    def caption_text(self) -> str:
        """The target, the preset and the start; whether a unit responded, and who may recognize the image of a class."""
        parts = [self.target_text(), f"preset {self.preset}", STARTS[self.init or self.default_of("init")]]
        frame = self.frame if self.run is not None and self.run.last is self.frame else None
        if frame is not None and frame.scalars.get("responded") == 0:
            return f"{', '.join(filter(None, parts))}; the unit did not respond; take more steps or start from another image"
        parameterization = self.parameterization or self.default_of("parameterization")
        if self.target_type == "class" and parameterization == "pixels":
            parts.append("an image that other networks may not recognize")
        return ", ".join(filter(None, parts))
