"""What a look through the pictures found: counts, and whatever is wrong with them, by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

UNREADABLE = "unreadable"
SMALL = "too small"
NO_CAPTION = "without caption"
BAD_CAPTION = "caption unreadable"
NO_HINT = "hint missing"
HINT_SHAPE = "hint of another shape"
DUPLICATE = "duplicate content"
SAME = "captions all the same"
DAMAGED = "archive damaged"
BAD_ROW = "row unreadable"
UNLISTED = "not in the table"
NO_PICTURE = "opted out, but no picture of that name"
EMPTY = "source without pictures"
LEFT_OUT = (UNREADABLE, SMALL, NO_HINT, HINT_SHAPE, BAD_ROW, UNLISTED)


@dataclass(frozen=True)
class Report:
    """What was found.

    found: pictures, of which kept: are trained on. epoch: how many an epoch meets, with repeats.
    sources: (path, pictures kept) of each. opted_out: names of those whose owners do not want them used, left out.
    problems: kind -> names with what is wrong with each; the kinds LEFT_OUT are not trained on, the others are.
    notes: what was done to pictures when they were opened -> their names.
    """

    found: int
    kept: int
    epoch: int
    sources: tuple[tuple[str, int], ...]
    opted_out: tuple[str, ...]
    problems: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, tuple[str, ...]]

    def lines(self, names: int = 5) -> Iterator[str]:
        """The report for people, with at most so many names of each kind."""
        yield f"{self.kept} of {self.found} pictures are trained on, {self.epoch} in an epoch"
        if len(self.sources) > 1:
            yield from (f"  {kept} from {path}" for path, kept in self.sources)
        if self.opted_out:
            yield f"{len(self.opted_out)} opted out: {_some(self.opted_out, names)}"
        for kind, named in self.problems.items():
            yield f"{len(named)} {kind}{', left out' if kind in LEFT_OUT else ''}: {_some(named, names)}"
        for note, named in self.notes.items():
            yield f"{len(named)} {note}: {_some(named, names)}"


@dataclass
class Findings:
    """What the search gathers on its way."""

    opted_out: list[str] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def problem(self, kind: str, what: str) -> None:
        """Something wrong, with its name."""
        self.problems.setdefault(kind, []).append(what)

    def note(self, kind: str, name: str) -> None:
        """Something done to a picture."""
        self.notes.setdefault(kind, []).append(name)

    def add(self, other: "Findings") -> None:
        """What another look found."""
        for kind, names in other.problems.items():
            self.problems.setdefault(kind, []).extend(names)
        for kind, names in other.notes.items():
            self.notes.setdefault(kind, []).extend(names)

    def left_out(self) -> int:
        """How many pictures were found and are not kept."""
        return sum(len(self.problems.get(kind, ())) for kind in LEFT_OUT)


def _some(names: tuple[str, ...], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return "; ".join(names[:count]) + more
