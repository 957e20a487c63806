"""Scan on a Dask cluster of two local worker processes."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from widget_helpers import written

from convis_widgets.core.dataset import batch_collector
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.scan import scan

distributed = pytest.importorskip("distributed")

PATIENCE = 60


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches for each worker."""
    monkeypatch.setattr(batch_collector, "auto_batch_size", lambda *_: 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 images, some unreadable, some equal."""
    root = written(tmp_path / "images", 300, bad := (0, 1, 150, 299), size=(16, 16))
    for i in {*range(0, 300, 7)} - {*bad}:
        Image.new("RGB", (16, 16)).save(root / f"{i:03}.png")
    return root


def assert_same_results(scan: Scan, other: Scan) -> None:
    assert scan.complete
    assert other.complete
    for layer in scan.layers:
        a, b = scan.top(layer), other.top(layer)
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.rows, b.rows)
        assert np.array_equal(a.cols, b.cols)
        assert np.allclose(a.values, b.values, atol=1e-5)
    assert np.allclose(scan.features(), other.features(), atol=1e-5, equal_nan=True)
    assert np.array_equal(scan.predictions, other.predictions)
    assert np.array_equal(scan.thumbnails(), other.thumbnails())
    assert scan.skipped == other.skipped
    assert len(scan.skipped) == 4


def test_scan_on_dask_matches_scan_in_one_process(tiny: Network, folder: Path, client: Any, tmp_path: Path) -> None:
    alone, together = (Scan(tiny, folder, layers="all", cache=tmp_path / name) for name in ("alone", "together"))
    Run(alone.frames()).run()
    last = Run(scan(tiny, together, client=client)).run()
    assert last.done
    assert last.scalars == {"images": 300, "skipped": 4}
    assert_same_results(alone, together)


def test_scan_resumes_locally_and_on_dask(tiny: Network, folder: Path, client: Any, tmp_path: Path) -> None:
    alone, mixed = (Scan(tiny, folder, cache=tmp_path / name) for name in ("alone", "mixed"))
    Run(alone.frames()).run()
    frames = mixed.frames(client=client)
    next(frames)
    frames.close()
    assert 0 < mixed.num_seen < 300
    again = Scan(tiny, folder, cache=tmp_path / "mixed")
    assert again.num_seen == mixed.num_seen
    again.step()
    Run(again.frames(client=client)).run()
    assert_same_results(alone, again)


def test_scan_on_dask_survives_killed_worker(tiny: Network, folder: Path, client: Any, tmp_path: Path) -> None:
    alone, together = (Scan(tiny, folder, cache=tmp_path / name) for name in ("alone", "together"))
    Run(alone.frames()).run()
    pids = client.run(os.getpid)
    victim = sorted(pids.values())[0]
    frames = together.frames(client=client)
    next(frames)
    os.kill(victim, signal.SIGKILL)
    for _ in frames:
        pass
    assert_same_results(alone, together)


def test_scan_on_dask_can_be_stopped(tiny: Network, folder: Path, client: Any, tmp_path: Path) -> None:
    store = Scan(tiny, folder, cache=tmp_path / "cache")
    run, first = Run(store.frames(client=client)), threading.Event()
    run.subscribe(lambda changed: first.set() if changed.last is not None else None)
    run.start()
    assert first.wait(PATIENCE)
    run.stop()
    assert run.join(PATIENCE)
    assert run.error is None
    assert store.num_seen > 0


def test_scan_on_dask_without_workers_raises(tiny: Network, folder: Path, tmp_path: Path) -> None:
    class Empty:
        def scheduler_info(self, **_: Any) -> dict[str, Any]:
            return {"workers": {}}

    with pytest.raises(ValueError, match="(?i)worker.*client"):
        next(scan(tiny, Scan(tiny, folder, cache=tmp_path / "cache"), client=Empty()))


def test_network_can_be_pickled(tiny: Network, image: np.ndarray) -> None:
    again = pickle.loads(pickle.dumps(tiny))
    assert again.predict(image) == tiny.predict(image)
    assert (again.name, again.labels, again.transform) == (tiny.name, tiny.labels, tiny.transform)
    assert [layer.name for layer in again.layers] == [layer.name for layer in tiny.layers]
