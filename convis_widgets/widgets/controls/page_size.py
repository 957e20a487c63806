"""PageSize: how wide the place of a widget in the page is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

from .parts import Parts


class PageSize(Parts, anywidget.AnyWidget):
    """An invisible widget, as wide as the box in which it is.

    Parameters
    ----------
    on_change : callable(width)
        Called with the width in pixels when the page displays the box, and whenever it has changed.
    """

    _esm = (Path(__file__).parent / "page_size.js").read_text()

    width = traitlets.Int(0, help="Width in pixels; 0 before it is displayed.").tag(sync=True)

    def __init__(self, on_change: Callable[[int], None]) -> None:
        super().__init__()
        self.layout.align_self = "stretch"
        self.layout.height = self.layout.margin = "0"
        self.observe(lambda change: on_change(change["new"]), "width")
