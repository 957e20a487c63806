"""ImageLoader: decoding in this process and ahead of time in worker processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from widget_helpers import written

from convis_widgets.core.dataset import batch_collector, image_loader
from convis_widgets.core.dataset.image_batch import ImageBatch, read_batch
from convis_widgets.core.dataset.image_loader import ImageLoader
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.transform import Transform
from convis_widgets.core.runs.run import Run

BATCH = 8
TRANSFORM = Transform((16, 18))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "images", 30, [7], size=(20, 24))


@pytest.fixture
def make_loader(folder: Path) -> Iterator[Callable[..., ImageLoader]]:
    made: list[ImageLoader] = []

    def make(workers: int | None, images: Any = folder) -> ImageLoader:
        made.append(ImageLoader(ImageSet.ensure(images), TRANSFORM, BATCH, workers))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def wait_for_workers(loader: ImageLoader) -> None:
    """Wait until everything that was given to the workers is decoded."""
    tasks = [task for batch in loader._pending.values() for task in batch]
    assert tasks
    assert not wait(tasks, 60).not_done


def assert_same(batch: ImageBatch, expected: ImageBatch) -> None:
    assert (batch.indices, batch.errors) == (expected.indices, expected.errors)
    for name in ("pixels", "labels", "thumbnails"):
        assert np.array_equal(getattr(batch, name), getattr(expected, name)), name


def test_image_loader_workers_match_loading_in_process(
    make_loader: Callable[..., ImageLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, with_workers = make_loader(0), make_loader(2)
    assert_same(with_workers.load(0, BATCH), alone.load(0, BATCH))  # the workers have not started yet
    wait_for_workers(with_workers)
    expected = [alone.load(start, min(start + BATCH, 30)) for start in (8, 16, 24)]
    monkeypatch.setattr(image_loader, "read_batch", lambda *_: pytest.fail("decoded in this process"))
    for start, batch in zip((8, 16), expected, strict=False):
        assert with_workers.is_ready(start)
        assert_same(with_workers.load(start, start + BATCH), batch)
    assert with_workers._pending_stop == 30


def test_image_loader_starts_anywhere(make_loader: Callable[..., ImageLoader]) -> None:
    loader, alone = make_loader(1), make_loader(0)
    loader.load(0, BATCH)
    wait_for_workers(loader)
    for start, stop in ((16, 24), (3, 8), (8, 16), (29, 30)):
        assert_same(loader.load(start, stop), alone.load(start, stop))


def test_image_loader_decodes_itself_if_workers_are_killed(folder: Path, make_loader: Callable[..., ImageLoader]) -> None:
    images = ImageSet(sorted(folder.iterdir()) * 4)
    loader, alone = make_loader(2, images), make_loader(0, images)
    loader.load(0, BATCH)
    wait_for_workers(loader)
    for pid in list(loader._executor._processes):
        psutil.Process(pid).kill()
    for start in range(BATCH, 120, BATCH):
        assert_same(loader.load(start, start + BATCH), alone.load(start, start + BATCH))
    assert loader._executor is None


def test_image_loader_ends_its_workers(make_loader: Callable[..., ImageLoader]) -> None:
    loader = make_loader(1)
    loader.load(0, BATCH)
    wait_for_workers(loader)
    processes = [psutil.Process(pid) for pid in loader._executor._processes]
    loader.close()
    assert not psutil.wait_procs(processes, 60)[1]


@pytest.mark.parametrize(
    ("decode", "compute", "count", "workers"),
    [(0.001, 0.0002, 20_000, None), (0.001, 0.001, 20_000, 1), (0.01, 0.004, 20_000, 3), (0.1, 0.001, 20_000, 4)],
)
def test_image_loader_starts_as_many_workers_as_keep_up(
    decode: float, compute: float, count: int, workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(image_loader.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(image_loader, "cpu_count", lambda: 5)

    def read_slowly(_read: object, indices: range, _transform: object) -> str:
        clock[0] += decode * len(indices)
        return "a batch"

    monkeypatch.setattr(image_loader, "read_batch", read_slowly)
    started: list[int] = []
    monkeypatch.setattr(ImageLoader, "_submit", lambda _self, _start, _stop, number: started.append(number))
    loader = ImageLoader(ImageSet([Path(f"{i}.png") for i in range(count)]), TRANSFORM, BATCH, None)
    for start in range(0, 4 * BATCH, BATCH):
        loader.load(start, start + BATCH)
        assert not started or start > 0
        clock[0] += compute * BATCH
    assert set(started) == ({workers} if workers else set())


def test_image_loader_reads_other_images_in_process(make_loader: Callable[..., ImageLoader]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (30, 16, 18, 3), dtype=np.uint8)
    loader = make_loader(None, array)
    assert np.allclose(loader.load(0, 30).pixels, array / 255, atol=1e-7)
    assert not loader.is_ready(30)


def test_scan_rejects_workers_for_images_that_are_not_files(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="workers"):
        Scan(tiny, [image], workers=2)


def test_scan_with_workers_has_the_same_results(
    tiny: Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_collector, "auto_batch_size", lambda *_: BATCH)
    alone, with_workers = (
        Scan(tiny, folder, layers="all", cache=tmp_path / str(workers), workers=workers) for workers in (0, 2)
    )
    Run(alone.frames()).run()
    frames = with_workers.frames()
    next(frames)
    wait_for_workers(with_workers._collector.loader)
    next(frames)
    frames.close()
    assert with_workers.num_seen == 16
    Run(with_workers.frames()).run()
    for layer in alone.layers:
        assert np.array_equal(alone.top(layer).values, with_workers.top(layer).values)
        assert np.array_equal(alone.top(layer).images, with_workers.top(layer).images)
    assert np.array_equal(alone.features(), with_workers.features(), equal_nan=True)
    assert np.array_equal(alone.thumbnails(), with_workers.thumbnails())
    assert alone.skipped == with_workers.skipped
    assert list(alone.skipped) == [7]


def test_next_batch_is_loaded_ahead_and_freed_at_the_end(
    tiny: Network, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_collector, "auto_batch_size", lambda *_: BATCH)
    scan = Scan(tiny, folder, cache=tmp_path / "cache", workers=1)
    frames = scan.frames()
    next(frames)
    wait_for_workers(scan._collector.loader)
    next(frames)
    start, batch, pixels = scan._collector._ahead
    assert (start, batch.indices) == (16, list(range(16, 24)))
    assert torch.equal(pixels, tiny.stack_images(batch.pixels))
    frames.close()
    assert scan._collector._ahead is None


def test_workers_in_a_script_without_main_guard(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    code = f"""
        from concurrent.futures import wait
        from convis_widgets.core.dataset.scan import Scan

        print("main module")
        scan = Scan("demo", {str(folder)!r}, cache={str(tmp_path / "cache")!r}, workers=1)
        frames = scan.frames()
        next(frames)
        for frame in frames:
            pass
        print(scan.num_seen)
    """
    script.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split("\n") == ["main module", "30", ""]
    assert done.stderr == ""


def start_script(folder: Path, tmp_path: Path, end: str) -> subprocess.Popen[str]:
    """A scan with workers in a script, which does something else after they have decoded a batch."""
    script = tmp_path / "script.py"
    code = f"""
        import os, signal
        from concurrent.futures import wait
        from convis_widgets.core.dataset import batch_collector
        from convis_widgets.core.dataset.scan import Scan

        batch_collector.auto_batch_size = lambda *_: 4
        scan = Scan("demo", {str(folder)!r}, cache={str(tmp_path / "cache")!r}, workers=2)
        frames = scan.frames()
        next(frames)
        loader = scan._collector.loader
        wait([task for batch in loader._pending.values() for task in batch])
        print(*loader._executor._processes, flush=True)
        next(frames)
        {end}
    """
    script.write_text(textwrap.dedent(code))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, script], **pipes)


@pytest.mark.parametrize("end", ["frames.close()", "os.killpg(os.getpgrp(), signal.SIGINT)", "os.kill(os.getpid(), 9)"])
def test_workers_end_with_the_scan_without_a_word(folder: Path, tmp_path: Path, end: str) -> None:
    with start_script(folder, tmp_path, end) as process:
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        _, errors = process.communicate(timeout=120)
    assert not psutil.wait_procs(workers, 60)[1]
    if end == "frames.close()":
        assert errors == ""
    assert errors.count("Traceback") == ("killpg" in end), "that of the script, none of the workers"


def test_read_batch_has_the_pixels_that_the_network_sees(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    gray16 = Image.fromarray(rng.integers(0, 65536, (20, 50), dtype=np.uint16))
    Image.fromarray(color).save(tmp_path / "color.png")
    gray16.save(tmp_path / "gray16.png")
    Image.fromarray(color[..., 0]).convert("P").save(tmp_path / "palette.png")
    files = ImageSet(tmp_path)
    prepared = rng.random((16, 18, 3)).astype(np.float32)
    mixed = ImageSet([color, Image.fromarray(color), prepared, prepared[..., 0], rng.random((30, 30, 3))])
    for images, dtype in ((files, np.uint8), (mixed, np.float32)):
        for transform in (TRANSFORM, Transform((16, 18), channels=1)):
            batch = read_batch(images.read, range(len(images)), transform)
            assert batch.pixels.dtype == dtype
            expected = np.stack([images.load(i, transform)[0] for i in range(len(images))])
            pixels = batch.pixels.astype(np.float32) / 255 if dtype == np.uint8 else batch.pixels
            assert np.array_equal(pixels, expected)


def test_stack_images_of_8_bits_is_that_of_floats(tiny: Network) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    expected = torch.from_numpy(levels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    batch = tiny.stack_images(levels)
    assert torch.allclose(batch.cpu(), expected, rtol=2e-7, atol=0)
    assert batch.is_contiguous()
