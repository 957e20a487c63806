"""Viewer: what all widgets share: a network, a picture for every front end, saving, errors on screen, and one Run.

A Viewer's state is its traits. A handler sets a trait or starts and stops a Run; whatever draws is called with the lock
held, since handlers and Runs come from different threads.
"""

from __future__ import annotations

import base64
import functools
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Network, Run, Unit, nearest
from .controls import note
from .encode import png
from .pump import dispose

MOMENT = 2.0  # seconds


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are shown in its widget instead of vanishing in a log."""

    @functools.wraps(handler)
    def careful(self: Viewer, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if self.closed:
                return None
            try:
                return handler(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001
                self.complain(error)
                return None

    return careful


class Viewer(ipywidgets.VBox):
    """Base of the widgets. See a subclass.

    Attributes
    ----------
    network : Network
    unit : Unit or None
        What is selected. The one trait by which widgets are linked.
    """

    unit = traitlets.Any(None, allow_none=True, help="The selected unit, a Unit or None.")
    closed = True  # until it is made
    _made_in: ClassVar[dict[str, tuple[str, weakref.WeakSet[Viewer]]]] = {}

    def __init__(self, network: Any, **keywords: Any) -> None:
        known = [name for name in self.trait_names() if not name.startswith("_")]
        for name in keywords:
            if name not in known:
                mine = [n for n in type(self).class_own_traits() if not n.startswith("_")] + ["unit", "layout"]
                raise TypeError(f"{type(self).__name__} has no keyword {name!r}; {nearest(name, mine)}")
        self.network = Network.ensure(network)
        self.lock = threading.RLock()
        self.closed = False
        self.run: Run | None = None
        self.status = ipywidgets.HTML()
        super().__init__(**keywords)
        self._stop_earlier_self()

    @traitlets.validate("unit")
    def _unit_exists(self, proposal: dict[str, Any]) -> Unit | None:
        value = proposal["value"]
        return None if value is None else Unit.ensure(value).checked(self.network)

    # -- pictures ----------------------------------------------------------------------------------------------

    def snapshot(self) -> np.ndarray:
        """What is to be seen now, as one (H, W, 3) uint8 picture on white."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what is to be seen now to a PNG file; an existing file is replaced only by a whole new one."""
        path = Path(path).expanduser()
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} should end in .png")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")
        self._await_picture()
        with self.lock:
            data = png(self.snapshot())
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            part.write(data)
        Path(part.name).replace(path)
        return path

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and beside it a PNG for pages and files where no kernel runs."""
        made = super()._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made, {})
        self._await_picture()
        with self.lock:
            picture = base64.b64encode(png(self.snapshot())).decode()
        return {**data, "image/png": picture, "text/plain": repr(self)}, metadata

    def _await_picture(self) -> None:
        """A computation that has only begun is given a moment to come to a first result."""
        run, there = self.run, threading.Event()
        if run is None:
            return

        def look(changed: Run) -> None:
            if not changed.active or (changed.last is not None and changed.last.step > 0):
                there.set()

        unsubscribe = run.subscribe(look)
        look(run)
        there.wait(MOMENT)
        unsubscribe()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.network!r}, unit={self.unit!r})"

    # -- errors ------------------------------------------------------------------------------------------------

    def complain(self, error: BaseException) -> None:
        """Show an error in the widget; a user's mistake by its sentence, anything else with its type."""
        plain = isinstance(error, (ValueError, TypeError, OSError, traitlets.TraitError))
        self.status.value = note(str(error) if plain else f"{type(error).__name__}: {error}", error=True)

    def settle(self) -> None:
        """Take an error off the screen."""
        if self.status.value:
            self.status.value = ""

    # -- runs --------------------------------------------------------------------------------------------------

    def launch(self, frames: Iterator[Frame], draw: Callable[[Run], None], *, start: bool = True) -> Run:
        """Stop the Run in progress and begin another; `draw(run)` is called, the lock held, as long as it is the one."""
        self.halt()
        run = Run(frames)
        self.run = run

        def follow(changed: Run) -> None:
            with self.lock:
                if changed is self.run and not self.closed:
                    if changed.error is not None:
                        self.complain(changed.error)
                    draw(changed)

        run.subscribe(follow)
        if start:
            run.start()
        return run

    def halt(self) -> None:
        """Stop the Run in progress, if any. Returns at once; what it still yields is not drawn."""
        run, self.run = self.run, None
        if run is not None:
            run.stop()

    def close(self) -> None:
        """End the computation and take the widget off every page."""
        if not self.closed:
            with self.lock:
                self.closed = True
                self.halt()
            for part in _below(self):
                dispose(part)
            self.layout.close()
        super().close()

    def _stop_earlier_self(self) -> None:
        """When a cell is run again, stop the Runs of the widgets that its last execution made."""
        cell, execution = _cell()
        if cell is None or execution is None:
            return
        last, viewers = Viewer._made_in.get(cell, ("", weakref.WeakSet()))
        if last != execution:
            for viewer in list(viewers):
                viewer.halt()
            viewers = weakref.WeakSet()
        viewers.add(self)
        Viewer._made_in[cell] = (execution, viewers)


def _below(box: ipywidgets.Box) -> Iterator[ipywidgets.Widget]:
    for child in box.children:
        if isinstance(child, ipywidgets.Box) and not hasattr(child, "pump"):
            yield from _below(child)
        yield child


def _cell() -> tuple[str | None, str | None]:
    """(cell, execution) that this code runs in, as far as the front end tells."""
    from IPython import get_ipython

    shell = get_ipython()
    parent = getattr(shell, "get_parent", dict)() if shell is not None else {}
    return parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id")


def link(*viewers: Viewer) -> None:
    """Let widgets share their selection: what is clicked in one is selected in all.

    Raises ValueError if they look at different networks.
    """
    for viewer in viewers:
        if not isinstance(viewer, Viewer):
            raise TypeError(f"{type(viewer).__name__} is no widget of convis_widgets")
    if len(viewers) < 2:
        raise TypeError("link takes two or more widgets")
    first, *others = viewers
    for other in others:
        if other.network is not first.network:
            raise ValueError(
                f"{type(first).__name__} shows {first.network.name} and {type(other).__name__} another network; give both "
                "the same Network object"
            )
        traitlets.link((first, "unit"), (other, "unit"))
