"""bars: classes with their probabilities, as HTML."""

from __future__ import annotations

import html


def bars(found: list[tuple[str, float]]) -> str:
    """Lines of a bar, a name, as text that is never run, and a percentage."""
    lines = []
    for label, p in found:
        width = f"{100 * p:.1f}%"
        lines.append(
            '<div style="position: relative; line-height: 22px; margin: 1px 0; padding: 0 6px; display: flex; '
            f'justify-content: space-between"><div style="position: absolute; left: 0; top: 0; bottom: 0; width: {width}; '
            'background: #0072B2; opacity: 0.35"></div>'
            '<span style="position: relative; overflow: hidden; white-space: nowrap; text-overflow: ellipsis">'
            f'{html.escape(label)}</span><span style="position: relative">{p:.1%}</span></div>'
        )
    return "".join(lines)
