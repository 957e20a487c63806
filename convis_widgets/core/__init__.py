"""The core: networks, activations, attribution, synthesis and image sets. It needs torch, numpy and Pillow, but not Jupyter.

The names below are the public API for writing techniques. Everything else can be imported from its module and may change.
"""

from .attribution.baseline import make_baseline as make_baseline
from .attribution.cam import cam_frame as cam_frame
from .attribution.gradient import input_gradient as input_gradient
from .attribution.gradient import layer_gradient as layer_gradient
from .dataset.image_set import ImageSet as ImageSet
from .dataset.scan import Scan as Scan
from .knob import Knob as Knob
from .network.batch_size import auto_batch_size as auto_batch_size
from .network.layers import Layer as Layer
from .network.network import Network as Network
from .network.trace import get_activations as get_activations
from .network.trace import trace as trace
from .network.transform import Transform as Transform
from .network.unit import Unit as Unit
from .network.unit import logit as logit
from .network.unit import resolve_inputs as resolve_inputs
from .network.unit import unit_values as unit_values
from .registry import FrameStream as FrameStream
from .registry import get_technique as get_technique
from .registry import technique as technique
from .runs.frame import Frame as Frame
from .runs.run import Run as Run
from .synthesis import objectives as objectives
from .synthesis.image_optimizer import ImageOptimizer as ImageOptimizer
from .synthesis.image_optimizer import noise as noise
from .types import ImageLike as ImageLike
from .types import NetworkLike as NetworkLike
from .types import UnitLike as UnitLike
