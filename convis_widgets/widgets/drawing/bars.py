"""Bars of predictions and color legends as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from ...core.network.output import Output
from ...core.text import one_line


def prediction_bars(predictions: Iterable[tuple[str, float]], output: Output) -> str:
    """One line per class: a bar, the label (escaped) and the probability in percent; no bar for values.

    Parameters
    ----------
    predictions : iterable of (str, float)
        Labels and probabilities in [0, 1], or values, as `Network.predict` returns them.
    output : Output
        Of the network.
    """
    lines = []
    for label, p in predictions:
        width = f"{100 * p if output.has_probabilities else 0:.1f}%"
        lines.append(
            '<div style="position: relative; line-height: 22px; margin: 1px 0; padding: 0 6px; display: flex; '
            f'justify-content: space-between"><div style="position: absolute; left: 0; top: 0; bottom: 0; width: {width}; '
            'background: #0072B2; opacity: 0.35"></div>'
            '<span style="position: relative; overflow: hidden; white-space: nowrap; text-overflow: ellipsis">'
            f"{html.escape(one_line(label))}</span>"
            f'<span style="position: relative; padding-left: 8px">{output.format(p)}</span></div>'
        )
    # as wide as its container, which long labels do not widen
    return f'<div style="width: 0; min-width: 100%">{"".join(lines)}</div>' if lines else ""


def legend_html(entries: Iterable[tuple[str, Sequence[int]]]) -> str:
    """One line per entry: a square of its color and its name (escaped); see `draw_legend` for an image.

    Parameters
    ----------
    entries : iterable of (str, color)
        Colors are (red, green, blue), each from 0 to 255.

    Examples
    --------
    >>> legend_html([("cat", (0, 114, 178))])  # doctest: +ELLIPSIS
    '<div style="overflow-wrap: anywhere"><span style="background: rgb(0, 114, 178); ...></span>cat</div>'
    """
    lines = []
    for name, color in entries:
        red, green, blue = map(int, color)
        square = f'<span style="background: rgb({red}, {green}, {blue}); padding: 0 9px; margin-right: 8px"></span>'
        lines.append(f'<div style="overflow-wrap: anywhere">{square}{html.escape(one_line(name))}</div>')
    return "".join(lines)
