"""The ten figures of Toyscape and their named parts.

A figure is a generator of pieces, from back to front, in the square [-1, 1] x [-1, 1] with y pointing down. Pose, size,
contour and light are added in ``toyscape``.
"""

from collections.abc import Callable, Iterator

import numpy as np

from .canvas import Piece
from .palette import BARKS, HAIRS, LEAVES, SKINS, WHITE, Color, contrasting, mix, paint, pick, shade
from .shapes import arc, box, ellipse, flip, polygon, rounded, smooth, spikes, stroke, symmetric

Figure = Callable[[np.random.Generator], Iterator[Piece]]

PARTS: dict[str, tuple[str, ...]] = {
    "face": ("hair", "head", "eyes", "nose", "mouth"),
    "car": ("body", "windows", "wheels", "lights"),
    "house": ("walls", "roof", "windows", "door", "chimney"),
    "tree": ("crown", "trunk"),
    "fish": ("body", "tail", "fins", "eye"),
    "flower": ("petals", "center", "stem", "leaves"),
    "cup": ("body", "handle", "opening"),
    "star": ("rays", "center"),
    "boat": ("hull", "sails", "mast", "flag"),
    "butterfly": ("wings", "spots", "body", "antennae"),
}
"""The parts of each class."""

LABELS: tuple[str, ...] = tuple(PARTS)
"""The class names; the `label` of a scene is an index into this tuple."""

_DARK: Color = (0.16, 0.14, 0.18)
_GLASS: Color = (0.75, 0.89, 0.95)


def face(rng: np.random.Generator) -> Iterator[Piece]:
    """Head with ears, one of three hairstyles, eyes, nose and a smiling or open mouth."""
    skin, hair = paint(rng, SKINS, 0.04), paint(rng, HAIRS, 0.05)
    hairstyle = pick(rng, ("short", "long", "buns"))
    if hairstyle == "long":
        yield Piece("hair", symmetric((0, -0.95), (0.68, -0.7), (0.84, 0.0), (0.8, 0.85), (0, 0.7)), hair)
    elif hairstyle == "buns":
        yield from (Piece("hair", ellipse(x, -0.7, 0.32), hair) for x in (-0.62, 0.62))
    for x in (-0.64, 0.64) if hairstyle != "long" else ():
        yield Piece("head", ellipse(x, 0.1, 0.15, 0.2), shade(skin, -0.08))
    yield Piece("head", symmetric((0, -0.8), (0.55, -0.55), (0.64, 0.1), (0.4, 0.75), (0, 0.93)), skin)
    blush = mix(skin, (0.93, 0.35, 0.35), 0.25)
    yield from (Piece("head", ellipse(x, 0.34, 0.15, 0.11), blush, line=False) for x in (-0.37, 0.37))
    part = rng.uniform(-0.3, 0.3)
    brow = ((0.3, -0.93), (0.66, -0.6), (0.7, -0.05), (0.5, -0.32))
    yield Piece("hair", smooth(*((-x, y) for x, y in brow[2::-1]), *brow, (part, -0.5), (-0.5, -0.32)), hair)
    iris = paint(rng, ((0.15, 0.13, 0.16), (0.2, 0.35, 0.6), (0.25, 0.45, 0.3), (0.35, 0.22, 0.13)), 0.03)
    for x in (-0.27, 0.27):
        yield Piece("eyes", ellipse(x, 0.02, 0.19, 0.17), WHITE, line=False)
        yield Piece("eyes", ellipse(x * 0.92, 0.04, 0.115), iris, line=False)
    yield Piece("nose", smooth((0, 0.1), (0.13, 0.36), (0, 0.42), (-0.13, 0.36)), shade(skin, -0.28), line=False)
    lips = (0.74, 0.17, 0.24)
    if rng.random() < 0.6:
        smile = smooth((-0.36, 0.5), (0, 0.58), (0.36, 0.5), (0.22, 0.74), (0, 0.8), (-0.22, 0.74))
        yield Piece("mouth", smile, lips, line=False)
        yield Piece("mouth", smooth((-0.24, 0.56), (0, 0.61), (0.24, 0.56), (0.16, 0.64), (-0.16, 0.64)), WHITE, line=False)
    else:
        yield Piece("mouth", ellipse(0, 0.64, 0.2, 0.15), shade(lips, -0.2), line=False)


_CABINS = (  # of a sedan, a beetle and a van: first the roof, then the windows
    (
        ((-0.66, -0.06), (-0.4, -0.56), (0.34, -0.56), (0.68, -0.04)),
        ((-0.5, -0.1), (-0.31, -0.45), (-0.04, -0.45), (-0.04, -0.1)),
        ((0.07, -0.1), (0.07, -0.45), (0.3, -0.45), (0.5, -0.1)),
    ),
    (
        ((-0.86, 0.0), (-0.58, -0.5), (0.0, -0.72), (0.5, -0.46), (0.74, 0.0)),
        ((-0.55, -0.1), (-0.42, -0.4), (-0.04, -0.54), (-0.04, -0.1)),
        ((0.08, -0.1), (0.08, -0.54), (0.36, -0.4), (0.52, -0.1)),
    ),
    (
        ((-0.92, 0.0), (-0.88, -0.66), (0.42, -0.66), (0.76, 0.0)),
        ((-0.76, -0.12), (-0.76, -0.52), (-0.3, -0.52), (-0.3, -0.12)),
        ((-0.18, -0.12), (-0.18, -0.52), (0.34, -0.52), (0.54, -0.12)),
    ),
)


def car(rng: np.random.Generator) -> Iterator[Piece]:
    """A sedan, a beetle or a van seen from the side, driving to the right."""
    body = paint(rng)
    roof, *panes = pick(rng, _CABINS)
    yield Piece("body", rounded(polygon(*roof), 0.14), body)
    yield Piece("body", rounded(box(-1.0, -0.12, 1.0, 0.42), 0.2), body)
    yield Piece("body", box(-0.94, 0.27, 0.94, 0.36), shade(body, -0.35), line=False)
    for pane in panes:
        yield Piece("windows", rounded(polygon(*pane), 0.06), _GLASS)
    yield Piece("body", box(-0.13, 0.05, 0.04, 0.11), shade(body, -0.4), line=False)
    yield Piece("lights", ellipse(0.9, 0.08, 0.14), (0.99, 0.91, 0.5))
    yield Piece("lights", box(-1.0, 0.0, -0.86, 0.18), (0.86, 0.16, 0.16))
    hub = mix(WHITE, paint(rng), 0.25)
    for x in (-0.55, 0.55):
        yield Piece("wheels", ellipse(x, 0.42, 0.28), _DARK, line=False)
        yield Piece("wheels", ellipse(x, 0.42, 0.13), hub, line=False)


def house(rng: np.random.Generator) -> Iterator[Piece]:
    """A front with a gable or hipped roof, a chimney, a door and one or two windows."""
    walls = mix(paint(rng), WHITE, rng.uniform(0.0, 0.6))
    roof, door = contrasting(rng, walls), contrasting(rng, walls)
    side = rng.uniform(0.3, 0.5)
    yield Piece("chimney", box(side - 0.12, -0.98, side + 0.14, -0.3), shade(roof, -0.25))
    yield Piece("chimney", box(side - 0.18, -1.0, side + 0.2, -0.84), shade(roof, -0.45))
    yield Piece("walls", box(-0.72, -0.25, 0.72, 0.92), walls)
    yield Piece("walls", box(-0.72, 0.8, 0.72, 0.92), shade(walls, -0.3), line=False)
    peak = pick(rng, (0.0, 0.35))
    yield Piece("roof", polygon((-0.95, -0.15), (-peak - 0.02, -0.88), (peak + 0.02, -0.88), (0.95, -0.15)), roof)
    yield Piece("roof", polygon((-0.95, -0.15), (-0.86, -0.25), (0.86, -0.25), (0.95, -0.15)), shade(roof, -0.3), line=False)
    x = pick(rng, (-0.34, 0.0, 0.34))
    arched = rng.random() < 0.4
    if arched:
        yield Piece("door", ellipse(x, 0.36, 0.19), door)
    yield Piece("door", box(x - 0.19, 0.3 if not arched else 0.36, x + 0.19, 0.92), door)
    yield Piece("door", ellipse(x + 0.1, 0.64, 0.05), (0.98, 0.85, 0.4), line=False)
    glass = pick(rng, (_GLASS, (0.99, 0.88, 0.5), (0.3, 0.4, 0.55)))
    for center in (-0.46, 0.46) if x == 0 else (-x,):
        half = 0.17 if x == 0 else 0.25
        yield Piece("windows", box(center - half, 0.05, center + half, 0.05 + 2 * half), WHITE)
        for u in (center - half * 0.87, center + half * 0.07):
            for v in (0.05 + half * 0.13, 0.05 + half * 1.07):
                yield Piece("windows", box(u, v, u + half * 0.8, v + half * 0.8), glass, line=False)


def tree(rng: np.random.Generator) -> Iterator[Piece]:
    """A fir, a round tree or a poplar, in colors of all seasons; some round trees bear fruit."""
    leaf, bark = paint(rng, LEAVES), paint(rng, BARKS, 0.03)
    light, dark = shade(leaf, 0.22), shade(leaf, -0.22)
    kind = pick(rng, ("fir", "round", "round", "poplar"))
    yield Piece("trunk", polygon((-0.17, 0.1), (0.17, 0.1), (0.23, 0.95), (-0.23, 0.95)), bark)
    yield Piece("trunk", polygon((0.06, 0.1), (0.17, 0.1), (0.23, 0.95), (0.09, 0.95)), shade(bark, -0.3), line=False)
    if kind == "fir":
        for top, bottom, half in ((0.0, 0.66, 0.74), (-0.48, 0.24, 0.6), (-0.98, -0.2, 0.44)):
            yield Piece("crown", rounded(polygon((0, top), (half, bottom), (-half, bottom)), 0.08), leaf)
            lee = polygon((0, top + 0.14), (half * 0.8, bottom - 0.04), (half * 0.25, bottom - 0.04))
            yield Piece("crown", lee, dark, line=False)
    elif kind == "round":
        lobes = ((-0.5, -0.08, 0.42), (0.5, -0.08, 0.42), (-0.32, -0.54, 0.42), (0.32, -0.54, 0.42))
        yield Piece("trunk", stroke([(0, 0.4), (0.12, 0.25), (0.3, 0.1)], 0.12), bark)
        yield from (Piece("crown", ellipse(x, y, r), leaf) for x, y, r in lobes)
        yield Piece("crown", ellipse(0, -0.25, 0.52, 0.45), leaf, line=False)
        yield Piece("crown", ellipse(-0.22, -0.5, 0.3, 0.22), light, line=False)
        yield Piece("crown", ellipse(0.36, 0.03, 0.28, 0.18), dark, line=False)
        if rng.random() < 0.4:
            fruit = contrasting(rng, leaf)
            spots = ((-0.45, -0.08), (0.02, 0.02), (0.42, -0.2), (0.2, -0.6), (-0.2, -0.36))
            yield from (Piece("crown", ellipse(x, y, 0.11), fruit, line=False) for x, y in spots)
    else:
        yield Piece("crown", symmetric((0, -1.0), (0.38, -0.55), (0.54, 0.1), (0.36, 0.5)), leaf)
        yield Piece("crown", smooth((0.06, -0.8), (0.26, -0.4), (0.34, 0.1), (0.22, 0.42), (0.04, 0.4)), dark, line=False)
        yield Piece("crown", smooth((-0.1, -0.7), (-0.06, -0.3), (-0.18, 0.1), (-0.3, 0.0)), light, line=False)


def fish(rng: np.random.Generator) -> Iterator[Piece]:
    """A fish swimming to the right: striped, scaled or with a pale belly."""
    body = paint(rng)
    fin, trim = contrasting(rng, body), contrasting(rng, body)
    deep = rng.uniform(0.4, 0.58)

    def back(x: float) -> float:
        return deep * float(np.sqrt(np.clip(1 - ((x - 0.15) / 0.82) ** 2, 0, 1))) ** 1.15

    yield Piece("tail", smooth((-0.5, 0), (-0.98, -0.55), (-0.84, 0), (-0.98, 0.55)), fin)
    yield Piece("fins", smooth((0.4, -deep * 0.75), (0.0, -deep - 0.3), (-0.35, -deep - 0.12), (-0.3, -deep * 0.6)), fin)
    yield Piece("fins", smooth((0.15, deep * 0.8), (-0.2, deep + 0.26), (-0.3, deep * 0.65)), fin)
    xs = np.linspace(-0.67, 0.97, 24)
    top = [(float(x), -back(float(x))) for x in xs]
    yield Piece("body", polygon(*top, *((x, -y) for x, y in reversed(top))), body)
    coat = pick(rng, ("stripes", "scales", "belly"))
    if coat == "stripes":
        for x in (-0.38, -0.06, 0.26):
            across = [(x + u, back(x + u) * 0.94) for u in (-0.02, 0.06, 0.14)]
            yield Piece("body", polygon(*across, *((u, -v) for u, v in reversed(across))), trim, line=False)
    elif coat == "scales":
        for x, y in ((-0.35, 0.0), (-0.1, -0.18), (-0.1, 0.18), (0.14, 0.0), (0.3, 0.25), (0.14, -0.3)):
            yield Piece("body", ellipse(x, y * deep * 2, 0.09), shade(body, 0.4), line=False)
    else:
        low = [(float(x), 0.93 * back(float(x))) for x in np.linspace(-0.5, 0.85, 16)]
        yield Piece("body", polygon(*low, (0.5, deep * 0.3), (-0.2, deep * 0.3)), mix(body, WHITE, 0.7), line=False)
    yield Piece("fins", smooth((0.26, 0.1), (-0.08, 0.02), (-0.12, 0.3)), shade(fin, -0.15))
    yield Piece("eye", ellipse(0.6, -deep * 0.28, 0.15), WHITE)
    yield Piece("eye", ellipse(0.63, -deep * 0.28, 0.085), _DARK, line=False)


def flower(rng: np.random.Generator) -> Iterator[Piece]:
    """Five to seven petals around a center, on a bent stem with two leaves."""
    petal, green = paint(rng), paint(rng, LEAVES[:5])
    count, bend = int(rng.integers(5, 8)), rng.uniform(-0.22, 0.22)
    y = np.linspace(-0.2, 1.08, 10)
    x = bend * np.sin((y + 0.2) / 1.28 * np.pi)
    yield Piece("stem", stroke(np.stack([x, y], axis=1), 0.16), green)
    for turn in (1, -1) if rng.random() < 0.5 else (-1, 1):
        height = 0.76 + 0.08 * turn
        joint = np.array([np.interp(height, y, x), height])
        leaf = smooth((0, 0.16), (0.34, -0.16), (0.78, -0.22), (0.52, 0.14)) * (turn, 1)
        yield Piece("leaves", leaf + joint, shade(green, 0.08 * turn))
    angles = np.arange(count) * 2 * np.pi / count + rng.uniform(0, np.pi)
    wide = {5: 0.33, 6: 0.28, 7: 0.24}[count]
    for number, angle in enumerate(angles):
        tone = shade(petal, 0.2) if number % 2 else petal
        yield Piece("petals", ellipse(0.5 * np.cos(angle), -0.3 + 0.5 * np.sin(angle), 0.36, wide, turn=angle), tone)
    heart = contrasting(rng, petal)
    yield Piece("center", ellipse(0, -0.3, 0.27), heart)
    yield Piece("center", ellipse(-0.05, -0.35, 0.12), shade(heart, 0.35), line=False)


def cup(rng: np.random.Generator) -> Iterator[Piece]:
    """A filled mug with a handle: plain, banded or dotted."""
    body, drink = paint(rng), paint(rng, ((0.3, 0.18, 0.1), (0.62, 0.38, 0.16), (0.85, 0.55, 0.2), (0.95, 0.9, 0.85)))
    trim, foot = contrasting(rng, body), rng.uniform(0.4, 0.6)

    def side(y: float) -> float:
        return foot + (0.64 - foot) * (0.9 - y) / 1.5

    yield Piece("handle", stroke(arc(0.56, 0.08, 0.4, 0.42, -1.75, 1.9), 0.2), shade(body, -0.12))
    yield Piece("body", symmetric((0.64, -0.62), (side(0.3), 0.3), (foot * 0.92, 0.86), (0, 0.97)), body)
    yield Piece("body", stroke([(-0.48, -0.3), (-0.44, 0.1), (-0.37, 0.6)], 0.1, taper=0.6), shade(body, 0.35), line=False)
    coat = pick(rng, ("plain", "bands", "dots"))
    if coat == "bands":
        for y in (-0.12, 0.34):
            upper, lower = side(y) * 0.97, side(y) * 0.95
            band = smooth((-upper, y), (0, y + 0.1), (upper, y), (lower, y + 0.22), (0, y + 0.33), (-lower, y + 0.22))
            yield Piece("body", band, trim, line=False)
    elif coat == "dots":
        for x, y in ((-0.3, -0.1), (0.28, -0.08), (0, 0.22), (-0.3, 0.52), (0.28, 0.54)):
            yield Piece("body", ellipse(x, y, 0.12), trim, line=False)
    yield Piece("opening", ellipse(0, -0.62, 0.66, 0.24), shade(body, 0.3))
    yield Piece("opening", ellipse(0, -0.59, 0.52, 0.16), drink, line=False)


def star(rng: np.random.Generator) -> Iterator[Piece]:
    """Four to six faceted rays around a round center."""
    color = paint(rng)
    count = int(rng.integers(4, 7))
    corners = spikes(count, 1.0, {4: 0.34, 5: 0.42, 6: 0.5}[count] * rng.uniform(0.9, 1.1))
    yield Piece("rays", corners, color)
    light, dark = shade(color, 0.25), shade(color, -0.25)
    for number, (a, b) in enumerate(zip(corners, np.roll(corners, -1, axis=0), strict=True)):
        yield Piece("rays", polygon((0, 0), tuple(a * 0.96), tuple(b * 0.96)), dark if number % 2 else light, line=False)
    jewel = contrasting(rng, color)
    yield Piece("center", ellipse(0, 0, 0.23), jewel)
    yield Piece("center", ellipse(-0.05, -0.05, 0.1), shade(jewel, 0.5), line=False)


def boat(rng: np.random.Generator) -> Iterator[Piece]:
    """A sailing boat: hull, mast, main sail, jib and pennant."""
    hull, main = paint(rng), mix(paint(rng), WHITE, pick(rng, (0.0, 0.35, 0.9)))
    jib, flag = contrasting(rng, hull), contrasting(rng, main)
    yield Piece("mast", box(-0.07, -0.9, 0.06, 0.5), paint(rng, BARKS, 0.03))
    yield Piece("flag", polygon((0.0, -1.0), (-0.5, -0.86), (0.0, -0.7)), flag)
    belly = rng.uniform(0.0, 0.14)
    yield Piece("sails", smooth((0.1, -0.78), (0.48 + belly, -0.3), (0.84, 0.3), (0.1, 0.32), pieces=4), main)
    if rng.random() < 0.4:
        yield Piece("sails", polygon((0.14, -0.1), (0.58 + belly * 0.5, -0.1), (0.7, 0.08), (0.14, 0.08)), flag, line=False)
    yield Piece("sails", smooth((-0.1, -0.62), (-0.1, 0.3), (-0.74, 0.32), (-0.4 - belly, -0.12), pieces=4), jib)
    yield Piece("hull", rounded(polygon((-0.98, 0.42), (1.0, 0.42), (0.66, 0.94), (-0.68, 0.94)), 0.1), hull)
    yield Piece("hull", polygon((-0.9, 0.48), (0.92, 0.48), (0.85, 0.6), (-0.83, 0.6)), mix(hull, WHITE, 0.65), line=False)


def butterfly(rng: np.random.Generator) -> Iterator[Piece]:
    """Two pairs of spotted wings, a long body and two antennae."""
    wing = paint(rng)
    hind, spot = (mix(wing, paint(rng), 0.45) if rng.random() < 0.6 else contrasting(rng, wing)), contrasting(rng, wing)
    rim = shade(wing, -0.4)
    lift = rng.uniform(-0.08, 0.08)
    for side in (lambda outline: outline, flip):
        yield Piece("antennae", side(stroke([(0.0, -0.4), (0.16, -0.7), (0.36, -0.9)], 0.1)), _DARK, line=False)
        yield Piece("antennae", side(ellipse(0.38, -0.91, 0.1)), _DARK, line=False)
        for part, color, line in (
            (smooth((0.0, 0.05), (0.6, 0.05), (0.78, 0.4), (0.5, 0.85 - lift), (0.2, 0.6)), shade(hind, -0.3), True),
            (smooth((0.06, 0.12), (0.52, 0.14), (0.66, 0.4), (0.45, 0.72 - lift), (0.2, 0.5)), hind, False),
            (smooth((0.0, 0.15), (0.25, -0.45), (0.8, -0.72 + lift), (1.0, -0.4), (0.75, 0.08)), rim, True),
            (smooth((0.06, 0.06), (0.3, -0.36), (0.76, -0.58 + lift), (0.88, -0.36), (0.66, 0.0)), wing, False),
        ):
            yield Piece("wings", side(part), color, line)
        yield Piece("spots", side(ellipse(0.62, -0.3, 0.19, 0.15, turn=-0.5)), spot, line=False)
        yield Piece("spots", side(ellipse(0.42, 0.42, 0.14)), spot, line=False)
    yield Piece("body", ellipse(0, 0.1, 0.11, 0.58), shade(_DARK, 0.1))
    yield Piece("body", ellipse(0, -0.44, 0.14), _DARK)


FIGURES: dict[str, Figure] = {
    "face": face, "car": car, "house": house, "tree": tree, "fish": fish,
    "flower": flower, "cup": cup, "star": star, "boat": boat, "butterfly": butterfly,
}  # fmt: skip
