"""Networks by name: the bundled ones, those of torchvision, and those of timm and transformers."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from .hub import load_from_hub
from .labels import LabelsLike
from .pretrained import load_pretrained
from .transform import Transform


class NamedNetwork(NamedTuple):
    """A module with its preprocessing and labels, None if they are to be inferred, and its name on screen."""

    module: nn.Module
    transform: Transform | None
    labels: LabelsLike | None
    name: str


def load_by_name(name: str) -> NamedNetwork:
    """A network of torchvision, or of timm or transformers if there is a slash in its name."""
    return NamedNetwork(*(load_from_hub(name) if "/" in name else load_pretrained(name)), name)


def load_demo(robust: bool, checkpoint: int | None) -> NamedNetwork:
    """A bundled network.

    Parameters
    ----------
    robust : bool
        Whether it was trained adversarially.
    checkpoint : int or None
        A step of its training; the end if None.
    """
    from convis_widgets import demo  # the core works without it

    transform = Transform((demo.SIZE, demo.SIZE), 3, demo.MEAN, demo.STD)
    name = f"demo network{'' if robust else ', ordinary'}{'' if checkpoint is None else f', step {checkpoint}'}"
    return NamedNetwork(demo.module(robust=robust, checkpoint=checkpoint), transform, demo.LABELS, name)
