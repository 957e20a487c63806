"""Room 1, the core: networks, traces, frames and runs. torch, numpy and Pillow; no Jupyter, no printing."""

from .ascend import Ascent, gray, noise
from .colors import COLORMAPS, colorize, to_unit, value_range
from .cpu import cores, settle_threads
from .errors import nearest
from .field import Field
from .fill import FILLS, filled
from .frame import Frame
from .gradient import SHOWN, explain, heat_of, input_gradient, layer_gradient, passes
from .graph import Graph, multiply_adds, record
from .image_set import ImageSet
from .images import is_photo, open_photo, pixel_rows, to_bytes
from .incremental import Patches
from .knobs import TECHNIQUES, Frames, Knob, heat_by, knobs_of, technique
from .layers import Layer, Layers
from .network import Network
from .objectives import (
    Objective,
    alike,
    channel,
    covariance,
    features,
    gram,
    layer,
    log_probability,
    lp,
    measure,
    squares,
    tv,
)
from .receptive import fields_of
from .run import Run, Stopped, checkpoint
from .scan import Scan, Top
from .selectors import Unit, asked, logit, select, unit, wanted
from .trace import trace
from .transform import Transform

__all__ = [
    "COLORMAPS",
    "FILLS",
    "SHOWN",
    "TECHNIQUES",
    "Ascent",
    "Field",
    "Frame",
    "Frames",
    "Graph",
    "ImageSet",
    "Knob",
    "Layer",
    "Layers",
    "Network",
    "Objective",
    "Patches",
    "Run",
    "Scan",
    "Stopped",
    "Top",
    "Transform",
    "Unit",
    "alike",
    "asked",
    "channel",
    "checkpoint",
    "colorize",
    "cores",
    "covariance",
    "explain",
    "features",
    "fields_of",
    "filled",
    "gram",
    "gray",
    "heat_by",
    "heat_of",
    "input_gradient",
    "is_photo",
    "knobs_of",
    "layer",
    "layer_gradient",
    "log_probability",
    "logit",
    "lp",
    "measure",
    "multiply_adds",
    "nearest",
    "noise",
    "open_photo",
    "passes",
    "pixel_rows",
    "record",
    "select",
    "settle_threads",
    "squares",
    "technique",
    "to_bytes",
    "to_unit",
    "trace",
    "tv",
    "unit",
    "value_range",
    "wanted",
]

settle_threads()
