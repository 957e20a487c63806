"""Room 3, the widgets: ipywidgets and ipyevents. They see numpy and Frames, never a tensor."""

from .activation_explorer import ActivationExplorer
from .deep_dream_panel import DeepDreamPanel
from .embedding_map import EmbeddingMap
from .feature_visualizer import FeatureVisualizer
from .filter_grid import FilterGrid
from .fooling_panel import FoolingPanel
from .inversion_panel import InversionPanel
from .max_patch_gallery import MaxPatchGallery
from .neighbor_viewer import NeighborViewer
from .occlusion_viewer import OcclusionViewer
from .randomization_viewer import RandomizationViewer
from .saliency_viewer import SaliencyViewer
from .style_transfer_panel import StyleTransferPanel
from .template_panel import TemplatePanel
from .texture_panel import TexturePanel
from .viewer import Viewer, link

__all__ = [
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
    "Viewer",
    "link",
]
