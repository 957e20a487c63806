"""Widgets: built on ipywidgets. They see numpy arrays and Frames, never a tensor."""

from .attribution.occlusion_viewer import OcclusionViewer as OcclusionViewer
from .attribution.randomization_viewer import RandomizationViewer as RandomizationViewer
from .attribution.saliency_viewer import SaliencyViewer as SaliencyViewer
from .base.link import link as link
from .base.viewer import Viewer as Viewer
from .dataset.embedding_map import EmbeddingMap as EmbeddingMap
from .dataset.max_patch_gallery import MaxPatchGallery as MaxPatchGallery
from .dataset.neighbor_viewer import NeighborViewer as NeighborViewer
from .network.activation_explorer import ActivationExplorer as ActivationExplorer
from .network.filter_grid import FilterGrid as FilterGrid
from .synthesis.deep_dream_panel import DeepDreamPanel as DeepDreamPanel
from .synthesis.feature_visualizer import FeatureVisualizer as FeatureVisualizer
from .synthesis.fooling_panel import FoolingPanel as FoolingPanel
from .synthesis.inversion_panel import InversionPanel as InversionPanel
from .synthesis.style_transfer_panel import StyleTransferPanel as StyleTransferPanel
from .synthesis.template_panel import TemplatePanel as TemplatePanel
from .synthesis.texture_panel import TexturePanel as TexturePanel
