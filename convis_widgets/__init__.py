"""See inside convolutional networks, live, from a Jupyter notebook.

Three rooms: `core` (networks, traces, runs), `techniques` (one generator of frames each) and `widgets` (what you see).
Names are loaded when they are first used, so that the core can be used where there is no Jupyter.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

# libgomp's threads otherwise spin while they wait, and starve the browser and the notebook server beside them. It reads
# this once, when torch is loaded.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")

_HOMES = {
    "core": ("Frame", "ImageSet", "Network", "Run", "Scan", "Transform", "Unit", "input_gradient", "logit", "trace"),
    "techniques": (
        "activations",
        "deconvnet",
        "deep_dream",
        "deletion_insertion",
        "embedding",
        "feature_inversion",
        "fooling",
        "grad_cam",
        "gradient_ascent",
        "guided_backprop",
        "integrated_gradients",
        "max_patches",
        "neighbors",
        "occlusion",
        "pointing_game",
        "randomization_check",
        "saliency",
        "scan",
        "segmentation",
        "smooth_grad",
        "style_transfer",
        "template_match",
        "texture",
    ),
    "widgets": (
        "ActivationExplorer",
        "DeepDreamPanel",
        "EmbeddingMap",
        "FeatureVisualizer",
        "FilterGrid",
        "FoolingPanel",
        "InversionPanel",
        "MaxPatchGallery",
        "NeighborViewer",
        "OcclusionViewer",
        "RandomizationViewer",
        "SaliencyViewer",
        "StyleTransferPanel",
        "TemplatePanel",
        "TexturePanel",
        "link",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", "core", "demo", "techniques", "widgets", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in ("core", "demo", "techniques", "widgets"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME_OF:
        return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
