"""Room 2, the techniques: one file, one technique, one generator of Frames. They use the core and never each other."""

from .activations import activations
from .deconvnet import deconvnet
from .deletion_insertion import deletion_insertion
from .grad_cam import grad_cam
from .guided_backprop import guided_backprop
from .integrated_gradients import integrated_gradients
from .occlusion import occlusion
from .pointing_game import pointing_game
from .randomization_check import randomization_check
from .saliency import saliency
from .segmentation import segmentation
from .smooth_grad import smooth_grad

__all__ = [
    "activations",
    "deconvnet",
    "deletion_insertion",
    "grad_cam",
    "guided_backprop",
    "integrated_gradients",
    "occlusion",
    "pointing_game",
    "randomization_check",
    "saliency",
    "segmentation",
    "smooth_grad",
]
