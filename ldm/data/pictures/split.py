"""Pictures kept for measuring: which ones depends on their content alone."""

from collections.abc import Sequence

from ldm.data.emoji_scenes.keyed import digest
from ldm.data.pictures.item import Item

FEWEST = 20  # different pictures, below which none can be spared


def split(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """(pictures to train on, pictures held out): a share of them, at least one, from 20 different ones on.

    Pictures of one content are on one side. Those with the lowest digests are held out, so that pictures that come or
    go change few sides, and another seed none.
    """
    contents = sorted({item.digest for item in items}, key=lambda content: (digest("held out", content), content))
    count = max(1, round(share * len(contents))) if share > 0 and len(contents) >= FEWEST else 0
    out = set(contents[:count])
    return [item for item in items if item.digest not in out], [item for item in items if item.digest in out]
