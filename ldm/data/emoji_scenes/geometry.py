"""When a relation holds between two boxes of a picture: the definitions that drawing obeys and evaluation measures.

Boxes are (x0, y0, x1, y1) of visible ink in units of the picture's side, y downwards.
"""

from collections.abc import Callable

from ldm.data.emoji_scenes.scene import Box, Scene
from ldm.data.emoji_scenes.vocabulary import INVERSES

Predicate = Callable[[Box, Box], bool]


def middle(box: Box) -> tuple[float, float]:
    """The centre (x, y)."""
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def overlap(a: Box, b: Box) -> float:
    """The share of the smaller box's area that lies in both."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    area = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0.0) * max(height, 0.0) / max(area, 1e-9)


def left_of(a: Box, b: Box) -> bool:
    """a ends before b begins, and they stand apart more across than up and down."""
    (ax, ay), (bx, by) = middle(a), middle(b)
    return a[2] <= b[0] and abs(ay - by) <= 0.6 * (bx - ax)


def above(a: Box, b: Box) -> bool:
    """a ends before b begins, and they stand apart more up and down than across."""
    (ax, ay), (bx, by) = middle(a), middle(b)
    return a[3] <= b[1] and abs(ax - bx) <= 0.6 * (by - ay)


def next_to(a: Box, b: Box) -> bool:
    """Side by side on one ground: a gap of at most an eighth of the picture, less than "left of" is drawn with."""
    gap = max(a[0], b[0]) - min(a[2], b[2])
    return -0.01 <= gap <= 0.125 and abs(a[3] - b[3]) <= 0.06


def holding(a: Box, b: Box) -> bool:
    """b is the smaller, touches a's lower part and has its middle below a's upper two fifths."""
    (_, by), height = middle(b), a[3] - a[1]
    return _area(b) < _area(a) and overlap(a, b) >= 0.2 and a[1] + 0.4 * height <= by <= a[3] + 0.1 * height


def wearing(a: Box, b: Box) -> bool:
    """b covers the top of a: it begins higher, ends in a's upper half and has its middle above a part of a."""
    (bx, by), height = middle(b), a[3] - a[1]
    ends = a[1] - 0.02 <= b[3] <= a[1] + 0.55 * height
    return b[1] < a[1] + 0.16 * height and ends and by < a[1] + 0.3 * height and a[0] <= bx <= a[2]


def riding(a: Box, b: Box) -> bool:
    """b is the larger; a's lower end is in its height, the rest of a above it, a's middle over a part of it."""
    (ax, ay), (_, by), height = middle(a), middle(b), b[3] - b[1]
    larger = max(height, b[2] - b[0]) >= max(a[3] - a[1], a[2] - a[0])
    return larger and ay < by and b[1] <= a[3] <= b[1] + 0.85 * height and b[0] <= ax <= b[2] and overlap(a, b) > 0


def on_top_of(a: Box, b: Box) -> bool:
    """a's lower edge is on b's upper part and a's body above it; its middle is above a part of b."""
    (ax, ay), height = middle(a), b[3] - b[1]
    return b[1] - 0.02 <= a[3] <= b[1] + 0.4 * height and ay < b[1] + 0.12 * height and b[0] - 0.02 <= ax <= b[2] + 0.02


def inside(a: Box, b: Box) -> bool:
    """a's middle is within b from side to side, and its lower end is in b's inner height."""
    (ax, _), height = middle(a), b[3] - b[1]
    return b[0] <= ax <= b[2] and b[1] + 0.15 * height <= a[3] <= b[3] and overlap(a, b) >= 0.3


PREDICATES: dict[str, Predicate] = {
    "left of": left_of,
    "right of": lambda a, b: left_of(b, a),
    "above": above,
    "below": lambda a, b: above(b, a),
    "next to": next_to,
    "holding": holding,
    "wearing": wearing,
    "riding": riding,
    "on top of": on_top_of,
    "inside": inside,
}


def holds(relation: str, a: Box, b: Box) -> bool:
    """Whether a relation of the vocabulary is true of two boxes. Raises ValueError for a word that is none."""
    if relation not in PREDICATES:
        raise ValueError(f"No relation {relation!r}: use one of {', '.join(PREDICATES)}.")
    return PREDICATES[relation](a, b)


def told(scene: Scene) -> list[tuple[str, Box, Box]]:
    """Every relation that the caption states, with the boxes it is true of, in both directions where it has two."""
    found = []
    inverse = {canonical: name for name, canonical in INVERSES.items()}
    for link in scene.plan.links:
        for a in scene.objects:
            for b in scene.objects:
                if (a.thing, b.thing) == (link.subject, link.object):
                    found.append((link.relation, a.box, b.box))
                    if link.relation in inverse:
                        found.append((inverse[link.relation], b.box, a.box))
    return found


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
