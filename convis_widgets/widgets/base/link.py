"""link: let widgets share their selection."""

from __future__ import annotations

import itertools

import traitlets

from .viewer import Viewer


def link(*viewers: Viewer) -> None:
    """Let widgets share their selection: what is selected in one is selected in all others that can show it.

    Widgets with units share a unit, widgets on the same image set an image, and MaxPatchGallery shares both. They start with
    the selection of the first widget in which something was selected, or else with the default of the first that has one.

    Parameters
    ----------
    *viewers : Viewer
        Two or more widgets with the same Network object.

    Raises
    ------
    TypeError
        One is not a widget of this package, or they are not two or more different widgets.
    ValueError
        They have different networks, or one has nothing in common with the others.

    Examples
    --------
    >>> from convis_widgets import ActivationExplorer, FilterGrid
    >>> grid, explorer = FilterGrid(), ActivationExplorer()
    >>> link(grid, explorer)
    >>> grid.unit = ("conv1", 3)
    >>> explorer.unit.channel
    3
    """
    for viewer in viewers:
        if not isinstance(viewer, Viewer):
            raise TypeError(f"{type(viewer).__name__} is not a widget of convis_widgets")
    if len(set(viewers)) < max(2, len(viewers)):
        raise TypeError("link takes two or more different widgets")
    first = viewers[0]
    for other in viewers:
        if other.network is not first.network:
            raise ValueError(
                f"{type(first).__name__} shows {first.network.name} and {type(other).__name__} another network; give both "
                "the same Network object"
            )
    # every pair, so that the other widgets stay linked when one is closed
    pairs = [
        (name, source, target)
        for name in ("unit", "image_index")
        for source, target in itertools.combinations(sorted(viewers, key=lambda viewer: _rank(viewer, name)), 2)
        if source.can_link(name, target)
    ]
    for viewer in viewers:
        if not any(viewer in pair for pair in pairs):
            raise ValueError(
                f"{type(viewer).__name__} has no selection in common with the others: images are shared by widgets on the "
                "same image set, units by widgets that show units; give all the same Scan, or leave it out"
            )
    for name, source, target in pairs:
        connection = traitlets.link((source, name), (target, name))
        source._links.add(connection)
        target._links.add(connection)


def _rank(viewer: Viewer, name: str) -> int:
    """0 for a selection, 1 for a default, 2 for none."""
    value = getattr(viewer, name, None)
    return 2 if value is None else int(name == "unit" and value == viewer._default_unit)
