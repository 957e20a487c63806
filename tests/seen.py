"""What tests of widgets share: waiting for a widget, and looking at what it sent to the page."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from convis_widgets.widgets.viewer import Viewer

PATIENCE = 30


def settled(viewer: Viewer) -> Any:
    """The widget, when its computation is over."""
    if viewer.run is not None:
        assert viewer.run.join(PATIENCE)
    return viewer


def shown(view: Any) -> np.ndarray:
    """The picture in a FrameView, decoded from what was sent to the page."""
    return np.asarray(Image.open(io.BytesIO(bytes(view.value))))
