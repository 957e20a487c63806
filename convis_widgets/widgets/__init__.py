"""Room 3, the widgets: ipywidgets and ipyevents. They see numpy and Frames, never a tensor."""

from .activation_explorer import ActivationExplorer
from .embedding_map import EmbeddingMap
from .feature_visualizer import FeatureVisualizer
from .filter_grid import FilterGrid
from .max_patch_gallery import MaxPatchGallery
from .neighbor_viewer import NeighborViewer
from .occlusion_viewer import OcclusionViewer
from .randomization_viewer import RandomizationViewer
from .saliency_viewer import SaliencyViewer
from .viewer import Viewer, link

__all__ = [
    "ActivationExplorer",
    "EmbeddingMap",
    "FeatureVisualizer",
    "FilterGrid",
    "MaxPatchGallery",
    "NeighborViewer",
    "OcclusionViewer",
    "RandomizationViewer",
    "SaliencyViewer",
    "Viewer",
    "link",
]
