"""All examples of pictures that are cut the same way each time: what can be encoded once."""

from collections.abc import Collection, Iterator

from ldm.data.pictures.buckets import place
from ldm.data.pictures.item import Size
from ldm.data.pictures.set import Outline, Pictures


def variants(pictures: Pictures, *, flips: bool = True, buckets: Collection[Size] = ()) -> Iterator[Outline]:
    """Each picture cut in the middle, and mirrored too where `data.flip` says so; with its first caption.

    buckets: (width, height) that every picture is cut to; () for its own.
    """
    for number, (item, own) in enumerate(zip(pictures.items, pictures.buckets, strict=True)):
        for bucket in buckets or (own,):
            placed = place(item.size, bucket, (0.5, 0.5))
            for flip in (False, True) if flips and pictures.config.flip else (False,):
                yield pictures.outlined(number, placed, flip, item.captions[0] if item.captions else "")
