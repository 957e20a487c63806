"""Room 1, the core: networks, traces, frames and runs. torch, numpy and Pillow; no Jupyter, no printing."""

from .colors import COLORMAPS, colorize, to_unit, value_range
from .cpu import settle_threads
from .errors import nearest
from .field import Field
from .frame import Frame
from .gradient import input_gradient
from .graph import Graph, multiply_adds, record
from .images import is_photo, open_photo
from .knobs import TECHNIQUES, Knob, knobs_of, technique
from .layers import Layer, Layers
from .network import Network
from .receptive import fields_of
from .run import Run, Stopped, checkpoint
from .selectors import Unit, logit, select
from .trace import trace
from .transform import Transform

__all__ = [
    "COLORMAPS",
    "TECHNIQUES",
    "Field",
    "Frame",
    "Graph",
    "Knob",
    "Layer",
    "Layers",
    "Network",
    "Run",
    "Stopped",
    "Transform",
    "Unit",
    "checkpoint",
    "colorize",
    "fields_of",
    "input_gradient",
    "is_photo",
    "knobs_of",
    "logit",
    "multiply_adds",
    "nearest",
    "open_photo",
    "record",
    "select",
    "settle_threads",
    "technique",
    "to_unit",
    "trace",
    "value_range",
]

settle_threads()
