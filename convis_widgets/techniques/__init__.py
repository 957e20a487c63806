"""Room 2, the techniques: one file, one technique, one generator of Frames. They use the core and never each other."""

from .activations import activations
from .occlusion import occlusion
from .saliency import saliency

__all__ = ["activations", "occlusion", "saliency"]
