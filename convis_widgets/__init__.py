"""See inside convolutional networks, live, from a Jupyter notebook.

The package has three parts: `core` (networks, activations, runs), `techniques` (generators of Frames) and `widgets`. All
their public names can be imported from here. They are loaded on first use, so that the core works without Jupyter.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import core as core
    from . import demo as demo
    from . import techniques as techniques
    from . import widgets as widgets
    from .core import *
    from .techniques import *
    from .widgets import *

__version__ = "0.1.0"

# Idle libgomp threads spin by default and starve the browser and the notebook server. Read once, when torch is loaded.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")

_ROOMS = ("core", "techniques", "widgets")


def _exports(room: str) -> dict[str, Any]:
    """The public names of a room, without its own submodules."""
    module = importlib.import_module(f".{room}", __name__)
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not (isinstance(value, ModuleType) and value.__name__ == f"{module.__name__}.{name}")
    }


def __getattr__(name: str) -> Any:
    if name in (*_ROOMS, "demo"):
        return importlib.import_module(f".{name}", __name__)
    if name == "__all__":
        return [one for one in __dir__() if not one.startswith("_")]
    if not name.startswith("_"):
        for room in _ROOMS:
            exports = _exports(room)
            if name in exports:
                return exports[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({"__version__", "demo", *_ROOMS, *(name for room in _ROOMS for name in _exports(room))})
