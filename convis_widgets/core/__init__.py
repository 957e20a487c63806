"""Room 1, the core: networks, traces, frames and runs. torch, numpy and Pillow; no Jupyter, no printing."""

from .ascend import Ascent, gray, noise
from .colors import COLORMAPS, colorize, to_unit, value_range
from .cost import Cost, Effort, afford, cost, memory_left
from .cpu import cores, settle_threads
from .errors import nearest
from .field import Field
from .fill import FILLS, filled
from .frame import Frame
from .gradient import SHOWN, explain, heat_of, input_gradient, layer_gradient, passes
from .graph import Graph, multiply_adds, record
from .image_set import ImageSet
from .images import is_photo, open_photo, pixel_rows, pyramid, resized_batch, scaled, to_bytes
from .incremental import Patches
from .knobs import TECHNIQUES, Frames, Knob, heat_by, knobs_of, technique
from .layers import Layer, Layers
from .network import Network
from .objectives import (
    SCORES,
    Measured,
    Objective,
    Seen,
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
from .optimizers import RATES
from .receptive import fields_of
from .run import Run, Stopped, checkpoint
from .scan import Scan, Top
from .selectors import Unit, asked, logit, select, unit, wanted
from .style import PALETTES, SMALLEST, STATISTICS, Palette, palette, style, style_of, unwoven, weighed
from .trace import maps_of, trace
from .transform import Transform

__all__ = [
    "COLORMAPS",
    "FILLS",
    "PALETTES",
    "RATES",
    "SCORES",
    "SHOWN",
    "SMALLEST",
    "STATISTICS",
    "TECHNIQUES",
    "Ascent",
    "Cost",
    "Effort",
    "Field",
    "Frame",
    "Frames",
    "Graph",
    "ImageSet",
    "Knob",
    "Layer",
    "Layers",
    "Measured",
    "Network",
    "Objective",
    "Palette",
    "Patches",
    "Run",
    "Scan",
    "Seen",
    "Stopped",
    "Top",
    "Transform",
    "Unit",
    "afford",
    "alike",
    "asked",
    "channel",
    "checkpoint",
    "colorize",
    "cores",
    "cost",
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
    "maps_of",
    "measure",
    "memory_left",
    "multiply_adds",
    "nearest",
    "noise",
    "open_photo",
    "palette",
    "passes",
    "pixel_rows",
    "pyramid",
    "record",
    "resized_batch",
    "scaled",
    "select",
    "settle_threads",
    "squares",
    "style",
    "style_of",
    "technique",
    "to_bytes",
    "to_unit",
    "trace",
    "tv",
    "unit",
    "unwoven",
    "value_range",
    "wanted",
    "weighed",
]

settle_threads()
