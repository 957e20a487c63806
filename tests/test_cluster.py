"""A scan on a cluster: two worker processes on this machine."""

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
from seen import written

from convis_widgets.core import Network, Run, Scan, examine
from convis_widgets.techniques import scan

distributed = pytest.importorskip("distributed")

PATIENCE = 60


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as made:
        yield made


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are several for each worker."""
    monkeypatch.setattr(examine, "passes", lambda *_: 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 pictures, some of which cannot be read, some of which are alike."""
    made = written(tmp_path / "pictures", 300, bad := (0, 1, 150, 299), size=(16, 16))
    for i in {*range(0, 300, 7)} - {*bad}:
        Image.new("RGB", (16, 16)).save(made / f"{i:03}.png")
    return made


def same(one: Scan, other: Scan) -> None:
    assert one.complete
    assert other.complete
    for layer in one.layers:
        a, b = one.top(layer), other.top(layer)
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.rows, b.rows)
        assert np.array_equal(a.cols, b.cols)
        assert np.allclose(a.values, b.values, atol=1e-5)
    assert np.allclose(one.features(), other.features(), atol=1e-5, equal_nan=True)
    assert np.array_equal(one.predictions, other.predictions)
    assert np.array_equal(one.thumbnails(), other.thumbnails())
    assert one.skipped == other.skipped
    assert len(one.skipped) == 4


def test_two_workers_find_what_one_process_finds(tiny: Network, folder: Path, client: Any, tmp_path: Path) -> None:
    alone, together = (Scan(tiny, folder, layers="all", cache=tmp_path / name) for name in ("alone", "together"))
    Run(alone.frames()).run()
    last = Run(scan(tiny, together, client=client)).run()
    assert last.done
    assert last.scalars == {"images": 300, "skipped": 4}
    same(alone, together)


def test_a_scan_goes_on_where_it_was_here_or_there(tiny: Network, folder: Path, client: Any, tmp_path: Path) -> None:
    alone, mixed = (Scan(tiny, folder, cache=tmp_path / name) for name in ("alone", "mixed"))
    Run(alone.frames()).run()
    frames = mixed.frames(client=client)
    next(frames)
    frames.close()
    assert 0 < mixed.seen < 300
    again = Scan(tiny, folder, cache=tmp_path / "mixed")
    assert again.seen == mixed.seen
    again.advance()
    Run(again.frames(client=client)).run()
    same(alone, again)


def test_a_worker_that_is_killed_in_the_middle_loses_nothing(
    tiny: Network, folder: Path, client: Any, tmp_path: Path
) -> None:
    alone, together = (Scan(tiny, folder, cache=tmp_path / name) for name in ("alone", "together"))
    Run(alone.frames()).run()
    pids = client.run(os.getpid)
    victim = sorted(pids.values())[0]
    frames = together.frames(client=client)
    next(frames)
    os.kill(victim, signal.SIGKILL)
    for _ in frames:
        pass
    same(alone, together)


def test_stopping_calls_off_what_has_not_begun(tiny: Network, folder: Path, client: Any, tmp_path: Path) -> None:
    store = Scan(tiny, folder, cache=tmp_path / "cache")
    run, first = Run(store.frames(client=client)), threading.Event()
    run.subscribe(lambda changed: first.set() if changed.last is not None else None)
    run.start()
    assert first.wait(PATIENCE)
    run.stop()
    assert run.join(PATIENCE)
    assert run.error is None
    assert store.seen > 0


def test_a_cluster_without_workers_is_told(tiny: Network, folder: Path, tmp_path: Path) -> None:
    class Empty:
        def scheduler_info(self, **_: Any) -> dict[str, Any]:
            return {"workers": {}}

    with pytest.raises(ValueError, match="the Dask cluster has no workers; start some, or leave client= out"):
        next(scan(tiny, Scan(tiny, folder, cache=tmp_path / "cache"), client=Empty()))


def test_a_network_can_be_pickled(tiny: Network, picture: np.ndarray) -> None:
    again = pickle.loads(pickle.dumps(tiny))
    assert again.predict(picture) == tiny.predict(picture)
    assert (again.name, again.labels, again.transform) == (tiny.name, tiny.labels, tiny.transform)
    assert [layer.name for layer in again.layers] == [layer.name for layer in tiny.layers]
