"""Very long names, names with line breaks and names with HTML, on screen and in saved images."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
from torch import nn
from widget_helpers import finished

from convis_widgets import EmbeddingMap, MaxPatchGallery, NeighborViewer
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.network.network import Network
from convis_widgets.widgets.base.viewer import Viewer

NASTY = "<b>bold</b>\n\x1b[31mred\ttab" + "x" * 3000 + "end.png"


@pytest.fixture
def parts() -> tuple[Network, ImageSet]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    array = np.random.default_rng(0).random((8, 12, 12, 3)).astype(np.float32)
    bad = np.full((12, 12, 3), np.nan, np.float32)
    images = ImageSet([*array, bad, bad], labels=[0, 1] * 5, classes=[NASTY, "y" * 3000])
    images.name, images.names = NASTY, [f"{i}{NASTY}" for i in range(10)]
    return Network(module, size=12, name=NASTY, labels=[NASTY, "z" * 3000]), images


def all_texts(widget: Any) -> Iterator[str]:
    """The texts of a widget and all in it, as a page shows them."""
    if isinstance(widget, ipywidgets.HTML):
        yield html.unescape(re.sub(r"<[^>]*>", "\n", widget.value))
    yield getattr(widget, "alt", "")
    for child in getattr(widget, "children", ()):
        yield from all_texts(child)


@pytest.mark.parametrize("kind", [EmbeddingMap, NeighborViewer, MaxPatchGallery])
def test_long_names_fit_on_screen_and_in_saved_images(kind: type[Viewer], parts: Any, own_cache: None) -> None:
    kwargs = {EmbeddingMap: {"method": "pca", "selection": (0, 1, 2)}, NeighborViewer: {"queries": (0, 8, 9)}}.get(kind, {})
    viewer: Any = kind(*parts, image_index=1, **kwargs)
    try:
        finished(viewer)
        assert not viewer.status.value
        texts = [text for text in all_texts(viewer) if text]
        assert any("<b>bold</b>" in text for text in texts), "names are shown, as text"
        for text in texts:
            assert "x" * 250 not in text
            assert "y" * 100 not in text
            assert "z" * 100 not in text
            assert "\x1b" not in text
        assert viewer.snapshot().shape[1] <= 1300
    finally:
        viewer.close()
