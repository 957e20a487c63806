"""Closing of widgets with all that belongs to them."""

from __future__ import annotations

from typing import Any

import ipywidgets


def close_fully(widget: ipywidgets.Widget) -> None:
    """Close a widget with its children, layout and style, which are widgets too and would stay registered forever."""
    for part in (*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, ipywidgets.Widget):
            close_fully(part)
    widget.close()


class Parts:
    """A mixin for widgets made of others, which are closed with them."""

    def close(self: Any) -> None:
        """Remove the widget and its parts from all pages."""
        for part in (*getattr(self, "children", ()), self.layout):
            close_fully(part)
        super().close()  # type: ignore[misc]
