"""Room 3, the widgets: ipywidgets and ipyevents. They see numpy and Frames, never a tensor."""

from .activation_explorer import ActivationExplorer
from .filter_grid import FilterGrid
from .occlusion_viewer import OcclusionViewer
from .randomization_viewer import RandomizationViewer
from .saliency_viewer import SaliencyViewer
from .viewer import Viewer, link

__all__ = ["ActivationExplorer", "FilterGrid", "OcclusionViewer", "RandomizationViewer", "SaliencyViewer", "Viewer", "link"]
