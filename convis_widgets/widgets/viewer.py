"""Viewer: what all widgets share: a network, a picture for every front end, saving, errors on screen, and one Run.

A Viewer's state is its traits. A handler sets a trait or starts and stops a Run; whatever draws is called with the lock
held, since handlers and Runs come from different threads.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import inspect
import itertools
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Network, Run, Unit, nearest
from .controls import ImagePicker, RunBar, note
from .encode import beside, png
from .pump import dispose

MOMENT = 2.0  # seconds


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are shown in its widget instead of vanishing in a log.

    It does nothing before the widget is made, once it is closed, and while the widget sets its own controls (`quietly`).
    """

    @functools.wraps(handler)
    def careful(self: Viewer, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if self.closed or not self._ready:
                return None
            try:
                return handler(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001
                self.complain(error)
                return None

    return careful


def in_folder(path: Path) -> None:
    """FileNotFoundError if there is no folder to write this file into."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")


def replaced(path: Path, data: bytes) -> Path:
    """The path of a file that now holds this; one that was there is replaced only by a whole new one."""
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


class ClassTrait(traitlets.Any):
    """A class of the widget's network, given by its index or name and kept as its index; or None."""

    def __init__(self, default: int | None, **keywords: Any) -> None:
        super().__init__(default, allow_none=True, **keywords)

    def validate(self, viewer: Viewer, value: Any) -> int | None:
        """The class's index; ValueError with near labels if there is no such class."""
        return None if value is None else viewer.network.target(value)


class _Whole(type(ipywidgets.VBox)):
    """Makes a widget whole or not at all: ipywidgets keeps whatever was made until it is closed."""

    def __call__(cls, *args: Any, **keywords: Any) -> Viewer:
        made = cls.__new__(cls, *args, **keywords)
        try:
            made.__init__(*args, **keywords)
        except BaseException:
            made.close()
            raise
        with made.lock:  # a Run that has begun may be setting controls quietly
            made._ready = True
        return made


class Viewer(ipywidgets.VBox, metaclass=_Whole):
    """Base of the widgets. See a subclass.

    Attributes
    ----------
    network : Network
    unit : Unit or None
        What is selected; a widget shows what it can of it.
    shares : tuple of str
        The traits by which it can be linked with others, see `link`.
    """

    shares: ClassVar[tuple[str, ...]] = ("unit",)

    unit = traitlets.Any(None, allow_none=True, help="The selected unit, a Unit or None.")
    closed = True  # until its constructor has begun
    bar: RunBar | None = None
    _ready = False  # until its constructor has ended
    _made_in: ClassVar[dict[str, tuple[str, weakref.WeakSet[Viewer]]]] = {}

    def __init__(self, network: Any, **keywords: Any) -> None:
        known = [name for name in self.trait_names() if not name.startswith("_")]
        for name in keywords:
            if name not in known:
                kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Viewer)]
                mine = [word for kind in kinds for word in inspect.signature(kind.__init__).parameters]
                mine += [word for kind in kinds for word in kind.class_own_traits()]
                mine = [
                    word
                    for word in dict.fromkeys(mine)
                    if not word.startswith("_") and word not in ("self", "keywords", "overlap")
                ]
                raise TypeError(f"{type(self).__name__} has no keyword {name!r}; {nearest(name, mine)}")
        self.network = Network.ensure(network)
        self.lock = threading.RLock()
        self.run: Run | None = None
        self._drawn = threading.Event()  # something worth keeping of the Run in progress
        self._trouble = ""  # the error on screen
        self._default: Unit | None = None  # a unit that nobody has asked for
        self._links: weakref.WeakSet[traitlets.link] = weakref.WeakSet()
        self.closed = False
        super().__init__(**keywords)
        self.status = ipywidgets.HTML()
        self.children = [self.status]
        self._stop_earlier_self()

    @traitlets.validate("unit")
    def _unit_exists(self, proposal: dict[str, Any]) -> Unit | None:
        value = proposal["value"]
        return None if value is None else Unit.ensure(value).checked(self.network)

    def _layer_wanted(self, layer: str | None) -> str | None:
        """The layer that `layer=` and `unit=` of a constructor name; None if neither does."""
        of_unit = self.unit.layer if self.unit is not None and self.unit.layer else None
        if layer is None:
            return of_unit
        name = self.network.layers[layer].name
        if of_unit not in (None, name):
            raise ValueError(f"layer={layer!r} is not the layer of unit={self.unit!r}; give one of the two")
        return name

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """While the widget sets its own controls and traits: they follow, and their handlers are not to lead."""
        with self.lock:
            before, self._ready = self._ready, False
            try:
                yield
            finally:
                self._ready = before

    # -- pictures ----------------------------------------------------------------------------------------------

    def snapshot(self) -> np.ndarray:
        """What is to be seen now, as one (H, W, 3) uint8 picture on white."""
        panels, lines = self._page()
        last = self.run.last if self.run is not None else None
        if last is not None and self.run.state != "done" and not last.done:
            lines = [*lines, f"not finished: {last.step}{f' of {last.total}' if last.total else ''} steps"]
        if self._trouble:
            lines = [*lines, self._trouble]
        return beside(panels, "\n".join(lines))

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        """Pictures with their titles, and lines of text below them; no pictures before there are any."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what is to be seen now to a PNG file; an existing file is replaced only by a whole new one."""
        path = Path(path).expanduser()
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path} should end in .png")
        in_folder(path)
        self._await_picture()
        with self.lock:
            data = png(self.snapshot())
        return replaced(path, data)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and beside it a PNG for pages and files where no kernel runs."""
        made = super()._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made, {})
        self._await_picture()
        with self.lock:
            picture = base64.b64encode(png(self.snapshot())).decode()
        return {**data, "image/png": picture, "text/plain": repr(self)}, metadata

    def _worth_keeping(self, frame: Frame) -> bool:
        """Whether a PNG should not wait for more than this Frame."""
        return frame.step > 0

    def _await_picture(self) -> None:
        """A computation that has only begun is given a moment to come to a result."""
        if self.run is not None and self.run.state != "ready":
            self._drawn.wait(MOMENT)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.network!r}, unit={self.unit!r})"

    # -- errors ------------------------------------------------------------------------------------------------

    def complain(self, error: BaseException) -> None:
        """Show an error in the widget; a user's mistake by its sentence, anything else with its type."""
        plain = isinstance(error, (ValueError, TypeError, OSError, traitlets.TraitError))
        self._trouble = str(error) if plain else f"{type(error).__name__}: {error}"
        self.status.value = note(self._trouble, error=True)

    def settle(self) -> None:
        """Take an error off the screen."""
        if self._trouble:
            self._trouble = self.status.value = ""

    # -- runs --------------------------------------------------------------------------------------------------

    def launch(self, frames: Iterator[Frame], draw: Callable[[Run], None], *, start: bool = True) -> Run:
        """Stop the Run in progress and begin another; `draw(run)` is called, the lock held, as long as it is the one.

        The widget's `bar`, if it has one, follows it.
        """
        run = Run(frames)

        def follow(changed: Run) -> None:
            with self.lock:
                if changed is self.run and not self.closed:
                    if changed.error is not None:
                        self.complain(changed.error)
                    draw(changed)
                    if not changed.active or (changed.last is not None and self._worth_keeping(changed.last)):
                        self._drawn.set()

        run.subscribe(follow)
        with self.lock:
            self.halt()
            self._drawn.clear()
            self.run = run
        if self.bar is not None:
            self.bar.follow(run)
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
            for made in list(self._links):
                made.unlink()
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


class PictureViewer(Viewer):
    """Base of the widgets that look at one of several pictures. See a subclass.

    Attributes
    ----------
    images : ImagePicker
        The pictures there are.
    """

    images: ImagePicker
    _good: tuple[Any] | None = None  # the last picture that could be read

    @property
    def image(self) -> Any:
        """The chosen picture. Assign a name on the menu, or a picture, which is put there or refused by `Network.image`."""
        return self.images.value

    @image.setter
    def image(self, picture: Any) -> None:
        if isinstance(picture, str) and picture in self.images.images:
            picture = self.images.images[picture]
        self.network.image(picture)
        self.images.choose(picture)

    def picture(self) -> np.ndarray:
        """The chosen picture as the network sees it; one that cannot be read gives way to the one before."""
        try:
            picture = self.network.image(self.images.value)
        except Exception:
            if self._good is not None:
                with self.quietly():
                    self.images.choose(self._good[0])
            raise
        self._good = (self.images.value,)
        return picture


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
    """Let widgets share their selection: what is clicked in one is selected in all that show it.

    A unit is shared by all that show units, a picture of a set by those that look at the same set; a MaxPatchGallery shows
    both. They begin with the selection of the first in which one was made, or else of the first that has one.

    Raises
    ------
    ValueError
        They look at different networks, or one has nothing in common with the others.
    """
    for viewer in viewers:
        if not isinstance(viewer, Viewer):
            raise TypeError(f"{type(viewer).__name__} is no widget of convis_widgets")
    if len(set(viewers)) < max(2, len(viewers)):
        raise TypeError("link takes two or more different widgets")
    first = viewers[0]
    for other in viewers:
        if other.network is not first.network:
            raise ValueError(
                f"{type(first).__name__} shows {first.network.name} and {type(other).__name__} another network; give both "
                "the same Network object"
            )
    # each with each, so that those that stay open remain linked when one is closed
    ties = [
        (trait, one, other)
        for trait in ("unit", "picked")
        for one, other in itertools.combinations(sorted(viewers, key=lambda viewer: _rank(viewer, trait)), 2)
        if _share(trait, one, other)
    ]
    for viewer in viewers:
        if not any(viewer in tie for tie in ties):
            raise ValueError(
                f"{type(viewer).__name__} has no selection in common with the others: pictures are shared by widgets of one "
                "set, units by those that show units; give all the same Scan, or leave it out"
            )
    for trait, one, other in ties:
        made = traitlets.link((one, trait), (other, trait))
        one._links.add(made)
        other._links.add(made)


def _rank(viewer: Viewer, trait: str) -> int:
    """Lower where something was selected: 1 for a default, 2 for nothing."""
    value = getattr(viewer, trait, None)
    return 2 if value is None else int(trait == "unit" and value == viewer._default)


def _share(trait: str, one: Viewer, other: Viewer) -> bool:
    there = trait in one.shares and trait in other.shares
    return there and (trait == "unit" or one.scan.signature == other.scan.signature)
