"""Techniques: one file, one generator of Frames each. They import the core, and never each other."""

# ruff: noqa: I001

# The order of the attribution methods is that of the menus in widgets.
from .attribution.saliency import saliency as saliency
from .attribution.guided_backprop import guided_backprop as guided_backprop
from .attribution.deconvnet import deconvnet as deconvnet
from .attribution.smooth_grad import smooth_grad as smooth_grad
from .attribution.integrated_gradients import integrated_gradients as integrated_gradients
from .attribution.grad_cam import grad_cam as grad_cam
from .attribution.score_cam import score_cam as score_cam
from .attribution.occlusion import occlusion as occlusion
from .attribution.segmentation import segmentation as segmentation
from .attribution.deletion_insertion import deletion_insertion as deletion_insertion
from .attribution.pointing_game import pointing_game as pointing_game
from .attribution.randomization_check import randomization_check as randomization_check
from .dataset.embedding import embedding as embedding
from .dataset.max_patches import max_patches as max_patches
from .dataset.neighbors import neighbors as neighbors
from .dataset.scan import scan as scan
from .network.activations import activations as activations
from .synthesis.deep_dream import deep_dream as deep_dream
from .synthesis.feature_inversion import feature_inversion as feature_inversion
from .synthesis.fooling import fooling as fooling
from .synthesis.gradient_ascent import gradient_ascent as gradient_ascent
from .synthesis.style_transfer import style_transfer as style_transfer
from .synthesis.template_match import template_match as template_match
from .synthesis.texture import texture as texture
