"""Lines of text as HTML."""

from __future__ import annotations

import html

import ipywidgets

from ...core.text import one_line

MAX_LINE = 600  # characters


def readout() -> ipywidgets.HTML:
    """An empty line of constant height, for the value under the mouse."""
    return ipywidgets.HTML(layout={"min_height": "28px"})


def text_html(text: str, *, error: bool = False) -> str:
    """Plain text as HTML for a status line, escaped, readable in light and dark themes; errors have a red bar."""
    if not text:
        return ""
    style = "border-left: 3px solid var(--jp-error-color1, #d32f2f); padding-left: 8px" if error else ""
    return f'<div style="line-height: 1.5; overflow-wrap: anywhere; {style}">{html.escape(one_line(text, MAX_LINE))}</div>'
