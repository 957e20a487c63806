"""Pictures that are decoded by worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from seen import written

from convis_widgets.core import Network, Run, Scan, examine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "pictures", 30, [7], size=(20, 24))


def test_what_processes_decode_is_what_this_one_would(
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


def test_only_files_are_decoded_by_others(tiny: Network, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="workers decode files; leave workers= out for other pictures"):
        Scan(tiny, [picture], workers=2)
