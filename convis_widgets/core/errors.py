"""How a mistake is answered: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 4) -> str:
    """The part of an error message that lists near names, e.g. ``nearest: conv5, conv4``."""
    known = list(known)
    folded = {item.lower(): item for item in known}
    inside = [item for item in known if name and name.lower() in item.lower()]
    close = [folded[item] for item in difflib.get_close_matches(name.lower(), folded, count, 0.4)]
    found = list(dict.fromkeys([*inside, *close]))[:count]
    if found:
        return f"nearest: {', '.join(found)}"
    shown = ", ".join(known[:8])
    return f"there are: {shown}{', ...' if len(known) > 8 else ''}" if known else "there are none"
