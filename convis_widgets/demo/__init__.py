"""Toyscape, a synthetic image set with masks, and two small networks trained on it, for examples without downloads.

``images()`` draws images, ``module()`` loads a network. Modules are loaded on first use, so that images do not require torch
and networks do not require scikit-learn. They do not import the rest of `convis_widgets`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .net import *  # noqa: F403
    from .patterns import *  # noqa: F403
    from .toyscape import *  # noqa: F403

_MODULES = ("toyscape", "patterns", "net")  # the last one needs torch


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    if not name.startswith("_"):
        for module in _MODULES:
            exports = import_module(f".{module}", __name__)
            if name in exports.__all__:
                return getattr(exports, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for module in _MODULES for name in import_module(f".{module}", __name__).__all__)
