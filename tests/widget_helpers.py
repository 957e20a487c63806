"""What tests of widgets share: waiting for a widget, and looking at what it sent to the page."""

from __future__ import annotations

import contextlib
import datetime
import io
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer
from convis_widgets.widgets.base.viewer import Viewer

PATIENCE = 30


def settled(viewer: Viewer) -> Any:
    """The widget, when its computation is over."""
    if viewer.run is not None:
        assert viewer.run.join(PATIENCE)
    return viewer


def finished(viewer: Viewer) -> Any:
    """The widget, when all is over that follows from its computation."""
    before: Run | None = None
    while viewer.run is not before:  # the end of the one may begin the other
        before = viewer.run
        settled(viewer)
    return viewer


def reached(run: Run, what: Callable[[Run], bool]) -> None:
    """Wait until this is true of a Run, and what it found is drawn."""
    there = threading.Event()
    run.subscribe(lambda changed: there.set() if what(changed) else None)
    assert what(run) or there.wait(PATIENCE)


@contextlib.contextmanager
def opening(usual: type[Viewer]) -> Iterator[Callable[..., Any]]:
    """Makes widgets, of the usual kind or another, that are closed in the end."""
    made: list[Viewer] = []

    def make(*args: Any, kind: type[Viewer] = usual, **keywords: Any) -> Any:
        made.append(kind(*args, **keywords))
        return made[-1]

    yield make
    for viewer in made:
        viewer.close()


class Slow:
    """Images that a Run receives one by one, when they are let through."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.gate, self.through = images, threading.Semaphore(0), set[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> np.ndarray:
        if threading.current_thread().name == "convis-run" and i not in self.through:
            assert self.gate.acquire(timeout=PATIENCE)
            self.through.add(i)
        return self.images[i]


class Gate:
    """Lets the steps of Runs through, one by one, and remembers with which words they were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.words = threading.Semaphore(0), list[dict[str, Any]]()
        step = ImageOptimizer.step

        def waiting(ascent: ImageOptimizer, *args: Any, **words: Any) -> Any:
            if threading.current_thread().name == "convis-run":  # and not those that measure how long a step takes
                assert self.count.acquire(timeout=PATIENCE)
                self.words.append(words)
            return step(ascent, *args, **words)

        monkeypatch.setattr(ImageOptimizer, "step", waiting)

    def let(self, times: int = 1) -> None:
        self.count.release(times)


def at(panel: Viewer, step: int) -> None:
    """Wait until this step was made, and drawn."""
    assert panel.run is not None
    reached(panel.run, lambda run: run.last is not None and run.last.step == step)


def written(folder: Path, count: int, bad: Iterable[int] = (), size: tuple[int, int] = (20, 20)) -> Path:
    """A folder of noise, 0.png and so on, with zeros in front so that all are in order; some files are not images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:0{len(str(count - 1))}}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        if i in bad:
            path.write_bytes(b"not an image")
    return folder


def shown(view: Any) -> np.ndarray:
    """The image of a FrameView, decoded from the bytes sent to the page."""
    return np.asarray(Image.open(io.BytesIO(bytes(view.value))))


def selected_box(view: Any) -> list[float] | None:
    """The box that the page frames as selected, (top, left, bottom, right)."""
    (box,) = [mark["box"] for mark in view.marks if mark.get("selection")] or [None]
    return box


def photo(array: np.ndarray) -> bytes:
    """An image (H, W, 3), uint8 or in [0, 1], as the content of a PNG file."""
    data = io.BytesIO()
    Image.fromarray(array if array.dtype == np.uint8 else (array * 255 + 0.5).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def uploaded(button: Any, name: str, content: bytes) -> None:
    """Do what a page does when a file was chosen."""
    file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    button.value = ({**file, "last_modified": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)},)
