"""Attribution methods in widgets: their color scale, their mask, their names and the Params for their knobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ipywidgets
import numpy as np

from ... import techniques as techniques  # which register their methods
from ...core.attribution.method import ATTRIBUTION_METHODS, AttributionMethod
from ...core.errors import did_you_mean
from ...core.network.network import Network
from ...core.network.unit import Unit
from ...core.runs.frame import Frame
from ..base.params import KnobParam, Param
from ..drawing.heatmap import color_limits

PIXEL_KNOBS = ("patch_size", "stride")  # in pixels; not larger than the image


RELATIVE_MIN_RANGE = 1e-5  # smaller changes of an activation or a value are due to rounding


def smallest_relevant(method: AttributionMethod, scalars: Mapping[str, float]) -> float:
    """The smallest magnitude in a map that is relevant, see `AttributionMethod.min_range`.

    Parameters
    ----------
    method : AttributionMethod
    scalars : mapping
        Of the Frame; with "value", the map does not show changes of a probability.
    """
    return method.min_range and (RELATIVE_MIN_RANGE * abs(scalars["value"]) if "value" in scalars else method.min_range)


def method_color_limits(method: AttributionMethod, heat: np.ndarray, scalars: Mapping[str, float]) -> tuple[float, float]:
    """Values at the two ends of the color scale of a map.

    Parameters
    ----------
    method : AttributionMethod
    heat : (H, W) array
        NaN where unknown.
    scalars : mapping
        Of the Frame, see `smallest_relevant`.
    """
    low, high = color_limits(heat, signed=method.signed, outlier_fraction=method.outlier_fraction)
    min_range = smallest_relevant(method, scalars)
    return (min(low, -min_range), max(high, min_range)) if min_range else (low, high)


def top_mask(
    method: AttributionMethod, heat: np.ndarray, scalars: Mapping[str, float], fraction: float
) -> tuple[np.ndarray, float]:
    """Mask of the pixels with the highest values.

    Parameters
    ----------
    method : AttributionMethod
    heat : (H, W) array
        NaN where unknown.
    scalars : mapping
        Of the Frame, see `smallest_relevant`.
    fraction : float in [0, 1]
        Fraction of the pixels in the mask. There are fewer if fewer are above the lowest value or, for a signed map, above
        the smallest relevant magnitude.

    Returns
    -------
    mask : (H, W) array of bool
    threshold : float
        Lowest value within the mask.
    """
    known = heat[np.isfinite(heat)]
    if not known.size:
        return np.zeros(heat.shape, bool), np.inf
    lowest = smallest_relevant(method, scalars) if method.signed else float(known.min())
    threshold = max(float(np.quantile(known, 1 - fraction)), float(np.nextafter(lowest, np.inf, dtype=known.dtype)))
    return heat >= threshold, threshold


def method_caption(
    method: AttributionMethod,
    frame: Frame,
    network: Network,
    predictions: np.ndarray,
    knobs: Mapping[str, Any],
    *,
    target: int | None = None,
    unit: Unit | None = None,
) -> str:
    """What the map of a method shows, in words.

    Parameters
    ----------
    method : AttributionMethod
    frame : Frame
    network : Network
    predictions : (classes,) array
        See `Network.predict_array`.
    knobs : mapping of str to object
        Values of the method's knobs.
    target : int, optional
        The class that is explained; the most probable class by default.
    unit : Unit, optional
        The unit that is explained instead.
    """
    if unit is not None:
        score = probability = f"{unit.layer}, channel {unit.channel}"
        value = f"{frame.scalars.get('value', float('nan')):.3g}"
        if frame.done and not frame.heat.any() and not frame.scalars.get("value", 0.0) > 0:
            return f"{score} is inactive on this image: the map is zero"
    else:
        output = network.output
        index = output.default_class(predictions) if target is None else target
        label, value = network.labels[index], output.format(predictions[index])
        score, probability = output.score_name(label), output.symbol(label)
    zero = "; the map is zero everywhere" if frame.done and not frame.heat.any() else ""
    return method.caption.format(score=score, probability=probability, value=value, **knobs) + zero


def find_method(name: Any) -> str:
    """Name of an attribution method, given its name in any spelling, the name of its technique, or the technique.

    Raises
    ------
    ValueError
        There is no such method.

    Examples
    --------
    >>> from convis_widgets import saliency
    >>> find_method("grad_cam"), find_method("saliency"), find_method(saliency)
    ('grad-cam', 'gradient', 'gradient')
    """
    plain = _plain(getattr(name, "__name__", str(name)))
    for known, method in ATTRIBUTION_METHODS.items():
        if plain in (_plain(known), _plain(method.technique.__name__)):
            return known
    raise ValueError(f"no method {name!r}; {did_you_mean(str(name), ATTRIBUTION_METHODS, len(ATTRIBUTION_METHODS))}")


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ")


class MethodParam(Param):
    """The name of an attribution method, chosen from a menu."""

    type_text = "str"

    def check(self, viewer: Any, value: Any) -> str:
        """Resolve the name."""
        return find_method(value)

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A menu."""
        return ipywidgets.Dropdown(options=list(ATTRIBUTION_METHODS), value=self.shown(viewer), description=self.description)


class MethodsParam(Param):
    """The name of an attribution method, or a tuple of several different ones."""

    type_text = "str or sequence of str"

    def check(self, viewer: Any, value: Any) -> str | tuple[str, ...]:
        """Resolve the names."""
        names = tuple(map(find_method, value if isinstance(value, (list, tuple)) else [value]))
        if not names or len(set(names)) < len(names):
            raise ValueError(f"method={value!r} should be one or more different ones of {', '.join(ATTRIBUTION_METHODS)}")
        return names[0] if len(names) == 1 else names


def default_patch_size(network: Network) -> int:
    """Side of an occluding patch in pixels, as in `occlusion`: a fifth of the shorter side of the image."""
    return max(1, round(min(network.transform.size) / 5))


def default_knob(viewer: Any, trait: str) -> Any:
    """What the control of a knob shows when its trait is None: what the technique uses then."""
    if trait.endswith("_patch_size"):
        return default_patch_size(viewer.network)
    if trait.endswith("_stride"):
        patch_size = getattr(viewer, f"{trait.removesuffix('stride')}patch_size")
        return max(1, round((patch_size or default_patch_size(viewer.network)) / 6))
    knob = type(viewer).params[trait].knob
    return knob.choices[0] if knob.choices else knob.low


def method_knobs(viewer: Any, name: str, *, defaults: bool = False) -> dict[str, Any]:
    """Values of the knobs of a method in a viewer; with `defaults`, what is used in place of None."""
    traits = {knob: knob_trait(ATTRIBUTION_METHODS[name], knob) for knob in ATTRIBUTION_METHODS[name].knobs}
    values = {knob: getattr(viewer, trait) for knob, trait in traits.items()}
    missing = [knob for knob, value in values.items() if value is None and defaults]
    return values | {knob: viewer.default_of(traits[knob]) for knob in missing}


def knob_trait(method: AttributionMethod, knob: str) -> str:
    """Name of the trait for a knob of a method: that of the technique and that of the knob."""
    return f"{method.technique.__name__}_{knob}"


def method_params(methods: Iterable[AttributionMethod]) -> dict[str, Param]:
    """Params for the knobs of methods, by trait name; their controls are shown when the viewer shows the method."""
    return {knob_trait(method, knob): _knob_param(method, knob) for method in methods for knob in method.knobs}


def _knob_param(method: AttributionMethod, knob: str) -> KnobParam:
    return KnobParam.of(
        method.technique,
        knob,
        effect="recompute",
        label=f"{method.name} {knob.replace('_', ' ')}",
        when=lambda viewer: method.name in viewer.methods,
        limit=(lambda viewer: min(viewer.network.transform.size)) if knob in PIXEL_KNOBS else None,
    )
