"""A picture that is trained on: what is known of it, and how its bytes are read. It holds none of them."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from ldm.data.pictures.open import BadPicture, Opened, open_picture

Size = tuple[int, int]  # (width, height) in pixels, as in Pillow


@dataclass(frozen=True, slots=True)
class Item:
    """A picture. It can be pickled, for workers.

    name: for people: its path, or its place in a table. captions: one of them is drawn each time; () for none.
    source: number of `DataConfig.all_sources`. repeats: how often an epoch meets it. weight: of its loss.
    hint: reads its control image. size: pixels (width, height), upright; (0, 0) until it was opened, as "" of
    digest: of its bytes. hint_digest: of its hint's.
    """

    name: str
    captions: tuple[str, ...]
    read: Callable[[], bytes]
    source: int = 0
    repeats: int = 1
    weight: float = 1.0
    hint: Callable[[], bytes] | None = None
    size: Size = (0, 0)
    digest: str = ""
    hint_digest: str = ""

    def open(self) -> Opened:
        """The picture. Raises BadPicture if it is not, or no longer, what was found."""
        return open_picture(_unchanged(self.read, self.name, self.digest), self.name)

    def open_hint(self) -> Opened | None:
        """The control image, None without one. Raises BadPicture as `open`."""
        if self.hint is None:
            return None
        name = f"the hint of {self.name}"
        return open_picture(_unchanged(self.hint, name, self.hint_digest), name)


def digest_of(data: bytes) -> str:
    """32 hex digits that tell a file's content."""
    return blake2b(data, digest_size=16).hexdigest()


def _unchanged(read: Callable[[], bytes], name: str, digest: str) -> bytes:
    try:
        data = read()
    except Exception as error:  # of the file system, of an archive, of a library of tables
        raise BadPicture(f"{name} cannot be read: {error}") from error
    if digest and digest_of(data) != digest:
        raise BadPicture(f"{name} is not what it was when the run began: put it back, or start anew")
    return data
