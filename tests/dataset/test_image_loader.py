"""ImageLoader: decoding in worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from widget_helpers import written

from convis_widgets.core.dataset import batch_collector
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "images", 30, [7], size=(20, 24))


def test_image_loader_workers_match_loading_in_process(
    tiny: Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_collector, "auto_batch_size", lambda *_: 8)
    alone, with_workers = (
        Scan(tiny, folder, layers="all", cache=tmp_path / str(workers), workers=workers) for workers in (0, 2)
    )
    Run(alone.frames()).run()
    frames = with_workers.frames()
    next(frames)
    frames.close()
    assert with_workers.num_seen == 8
    Run(with_workers.frames()).run()
    for layer in alone.layers:
        assert np.array_equal(alone.top(layer).values, with_workers.top(layer).values)
        assert np.array_equal(alone.top(layer).images, with_workers.top(layer).images)
    assert np.array_equal(alone.features(), with_workers.features(), equal_nan=True)
    assert np.array_equal(alone.thumbnails(), with_workers.thumbnails())
    assert alone.skipped == with_workers.skipped
    assert list(alone.skipped) == [7]


def test_scan_rejects_workers_for_images_that_are_not_files(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="workers"):
        Scan(tiny, [image], workers=2)
