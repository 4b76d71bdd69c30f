"""What a picture has to show for a caption to be true of it, by the renderer's own definitions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ldm.data.emoji_scenes.geometry import holds
from ldm.data.emoji_scenes.plan import Link, Plan, Thing
from ldm.data.emoji_scenes.scene import Box

MEASURES = ("nouns", "colours", "counts", "relations", "joint")


class Seen(Protocol):
    """A thing in a picture, found by a checker or known from a scene."""

    @property
    def noun(self) -> str: ...
    @property
    def box(self) -> Box: ...
    @property
    def colour(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which parts of a caption a picture fulfils; what a caption does not say is fulfilled.

    nouns: each is there. colours: all of a coloured noun have its colour. counts: each noun is there exactly as often
    as the caption says, one where it says none. relations: each holds between all of its subject and some object.
    """

    nouns: bool
    colours: bool
    counts: bool
    relations: bool

    @property
    def joint(self) -> bool:
        """Everything at once."""
        return self.nouns and self.colours and self.counts and self.relations


def judge(seen: Sequence[Seen], plan: Plan) -> Verdict:
    """Whether the things seen in a picture are what a plan says."""
    of = [[one for one in seen if one.noun == thing.noun] for thing in plan.things]
    pairs = list(zip(plan.things, of, strict=True))
    return Verdict(
        nouns=all(of),
        colours=all(_coloured(thing, found) for thing, found in pairs),
        counts=all(len(found) == thing.count for thing, found in pairs),
        relations=all(_related(link, of) for link in plan.links),
    )


def _coloured(thing: Thing, found: Sequence[Seen]) -> bool:
    return not thing.colour or (bool(found) and all(one.colour == thing.colour for one in found))


def _related(link: Link, of: Sequence[Sequence[Seen]]) -> bool:
    subjects, objects = of[link.subject], of[link.object]
    return bool(subjects) and all(any(holds(link.relation, a.box, b.box) for b in objects) for a in subjects)
