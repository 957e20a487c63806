"""ImageLoader: decoding in worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from seen import written

from convis_widgets.core import Network, Run, Scan, examine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "images", 30, [7], size=(20, 24))


def test_image_loader_workers_match_loading_in_process(
    tiny: Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "passes", lambda *_: 8)
    alone, helped = (Scan(tiny, folder, layers="all", cache=tmp_path / str(workers), workers=workers) for workers in (0, 2))
    Run(alone.frames()).run()
    frames = helped.frames()
    next(frames)
    frames.close()
    assert helped.seen == 8
    Run(helped.frames()).run()
    for layer in alone.layers:
        assert np.array_equal(alone.top(layer).values, helped.top(layer).values)
        assert np.array_equal(alone.top(layer).images, helped.top(layer).images)
    assert np.array_equal(alone.features(), helped.features(), equal_nan=True)
    assert np.array_equal(alone.thumbnails(), helped.thumbnails())
    assert alone.skipped == helped.skipped
    assert list(alone.skipped) == [7]


def test_scan_rejects_workers_for_images_that_are_not_files(tiny: Network, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="workers"):
        Scan(tiny, [picture], workers=2)
