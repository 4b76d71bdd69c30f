"""The pictures of a run by position: which one, cut where, said what. Nothing depends on what was asked before."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from PIL import Image

from configs.finetuning import DataConfig
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.pictures import hints
from ldm.data.pictures.buckets import Placed, nearest, place, seen, shapes
from ldm.data.pictures.cache import key_of
from ldm.data.pictures.captions import caption
from ldm.data.pictures.item import Item, Size
from ldm.data.pictures.order import Order
from ldm.data.pictures.split import split

_SEEN_AS = ("crop", "flip", "shuffle_tags", "keep_tags", "tag_separator", "caption_dropout")


@dataclass(frozen=True)
class Outline:
    """What is known of an example without opening its picture.

    weight: of its loss. item: number in `Pictures.items`. key: for caches: tells the picture's content and how it is
    cut and mirrored, but neither caption nor control image.
    """

    caption: str
    placed: Placed
    flip: bool
    weight: float
    item: int
    name: str
    key: str

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's conditions: original height and width, top and left of the cut, height and width of what comes out."""
        return self.placed.sizes


@dataclass(frozen=True)
class Example(Outline):
    """A picture as the model sees it, of its bucket's size, and its control image, cut the very same way."""

    image: Image.Image
    hint: Image.Image | None


class Pictures:
    """Examples by position. It can be pickled, and its copies say the same.

    items: the pictures trained on; held_out: those kept for measuring, None without. left_out: names of pictures that
    are smaller than their bucket and not to be enlarged. buckets: (width, height) of each item. fingerprint: tells all
    that examples depend on.
    """

    def __init__(
        self, items: Sequence[Item], config: DataConfig, *, size: int, seed: int, batch: int, edges: bool = False
    ) -> None:
        """size: pixels, the side of a square picture. batch: of all processes together. edges: the control images are
        the pictures' own edges.

        Raises ValueError if nothing is left to train on, or bucket_step is larger than the size.
        """
        self.config, self.size, self.seed, self.edges = config, size, seed, edges
        choice = shapes(size, config.bucket_step) if config.buckets else [(size, size)]
        bucket = {picture: nearest(picture, choice) for picture in {item.size for item in items}}
        fits = [config.enlarge or _covers(item.size, bucket[item.size]) for item in items]
        self.left_out = tuple(item.name for item, fit in zip(items, fits, strict=True) if not fit)
        self.items, held_out = split([item for item, fit in zip(items, fits, strict=True) if fit], config.held_out)
        if not self.items:
            raise ValueError(
                f"none of {len(items)} pictures is as large as its bucket, of {size} x {size} pixels or another shape "
                "of that area: set data.enlarge = true, or a smaller data.size"
            )
        self.buckets = [bucket[item.size] for item in self.items]
        self.order = Order(self.items, self.buckets, batch, seed)
        self.fingerprint = self._fingerprint()
        rest = replace(config, held_out=0.0)
        self.held_out = Pictures(held_out, rest, size=size, seed=seed, batch=batch, edges=edges) if held_out else None

    def __len__(self) -> int:
        """Positions in an epoch."""
        return len(self.order)

    def shapes(self) -> Mapping[Size, int]:
        """How many pictures each bucket has."""
        return dict(sorted(Counter(self.buckets).items()))

    def placed(self, position: int, bucket: Size | None = None) -> Placed:
        """How the picture at a position is cut; to another bucket than its own if one is given, as that of a batch it
        joins."""
        pick = self.order.pick(position)
        drawn = Keyed("crop", self.seed, position)
        at = (drawn.unit(), drawn.unit()) if self.config.crop == "random" else (0.5, 0.5)
        return place(self.items[pick.item].size, bucket or pick.bucket, at)

    def flipped(self, position: int) -> bool:
        """Whether the picture at a position is mirrored."""
        return self.config.flip and Keyed("flip", self.seed, position).chance(0.5)

    def outline(self, position: int, bucket: Size | None = None) -> Outline:
        """The example at a position without its pixels: no file is opened. bucket: as in `placed`."""
        number = self.order.pick(position).item
        said = caption(self.items[number], self.config, self.seed, position)
        return self.outlined(number, self.placed(position, bucket), self.flipped(position), said)

    def outlined(self, number: int, placed: Placed, flip: bool, said: str) -> Outline:
        """An item cut, mirrored and captioned in this way."""
        item = self.items[number]
        key = key_of(item.digest, placed, flip)
        return Outline(said, placed, flip, weight=item.weight, item=number, name=item.name, key=key)

    def example(self, position: int, bucket: Size | None = None) -> Example:
        """The example at a position. bucket: as in `placed`.

        Raises BadPicture if the picture is gone, or no longer what was found before the run.
        """
        return self.opened(self.outline(position, bucket))

    def opened(self, outline: Outline) -> Example:
        """An example with its pixels. Raises BadPicture as `example`."""
        item, placed, flip = self.items[outline.item], outline.placed, outline.flip
        image = seen(item.open().image, placed, flip)
        return Example(**vars(outline), image=image, hint=hints.edges(image) if self.edges else self.hint(outline))

    def hint(self, outline: Outline) -> Image.Image | None:
        """The control image of an example; the picture itself is opened only for its edges. Raises BadPicture as
        `example`."""
        if self.edges:
            return self.opened(outline).hint
        paired = self.items[outline.item].open_hint()
        return seen(paired.image, outline.placed, outline.flip) if paired else None

    def _fingerprint(self) -> str:
        hashed = blake2b(self.order.fingerprint.encode(), digest_size=16)
        hashed.update(repr([getattr(self.config, name) for name in _SEEN_AS] + [self.edges]).encode())
        for item in self.items:
            hashed.update(repr((item.captions, item.weight, item.size, item.hint_digest)).encode())
        return hashed.hexdigest()


def _covers(size: Size, bucket: Size) -> bool:
    return size[0] >= bucket[0] and size[1] >= bucket[1]
