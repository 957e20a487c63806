"""Room 2, the techniques: one file, one technique, one generator of Frames. They use the core and never each other."""

from .activations import activations
from .deconvnet import deconvnet
from .deep_dream import deep_dream
from .deletion_insertion import deletion_insertion
from .embedding import embedding
from .feature_inversion import feature_inversion
from .fooling import fooling
from .grad_cam import grad_cam
from .gradient_ascent import gradient_ascent
from .guided_backprop import guided_backprop
from .integrated_gradients import integrated_gradients
from .max_patches import max_patches
from .neighbors import neighbors
from .occlusion import occlusion
from .pointing_game import pointing_game
from .randomization_check import randomization_check
from .saliency import saliency
from .scan import scan
from .segmentation import segmentation
from .smooth_grad import smooth_grad
from .style_transfer import style_transfer
from .template_match import template_match
from .texture import texture

__all__ = [
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
]
