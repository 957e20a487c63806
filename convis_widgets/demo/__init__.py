"""What the lessons look at when nobody brings a network or pictures: Toyscape and two small networks trained on it.

``images()`` gives pictures with true masks, ``module()`` the trained network. Nothing here knows about the rest of
the package, and nothing is loaded before it is asked for: pictures need no torch, networks no scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .net import MEAN, SIZE, STD, DemoNet, checkpoints, module
    from .patterns import paintings
    from .toyscape import LABELS, PARTS, Scene, Toyscape, images

__all__ = [
    "LABELS",
    "MEAN",
    "PARTS",
    "SIZE",
    "STD",
    "DemoNet",
    "Scene",
    "Toyscape",
    "checkpoints",
    "images",
    "module",
    "paintings",
]

_HOMES = {
    "net": ("MEAN", "SIZE", "STD", "DemoNet", "checkpoints", "module"),
    "patterns": ("paintings",),
    "toyscape": ("LABELS", "PARTS", "Scene", "Toyscape", "images"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
