"""What a scene says, before it is drawn: things, the links between them, a background and a style."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from ldm.data.emoji_scenes.vocabulary import COUNTS, IMPLIES, IMPLIES_INVERSE, SYMMETRIC

Combination = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Thing:
    """One noun phrase. colour and size "" = not said; count copies of it; word = the letters on a sign."""

    noun: str
    colour: str = ""
    size: str = ""
    count: int = 1
    word: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """`relation` holds between things[subject] and things[object]; never "right of" or "below": see INVERSES."""

    relation: str
    subject: int
    object: int


@dataclass(frozen=True, slots=True)
class Background:
    """kind "plain" or "gradient" with a colour ("" = pale and not said), or a name of SCENES; one of 16 variants."""

    kind: str = "plain"
    colour: str = ""
    variant: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The meaning of a scene; equal plans are the same picture up to chance."""

    things: tuple[Thing, ...]
    links: tuple[Link, ...] = ()
    background: Background = Background()
    style: str = "flat"


def combinations_of(plan: Plan) -> set[Combination]:
    """What splits may hold out, in a spelling that no paraphrase changes: told by meaning, not by words.

    (colour, c, noun), (count, n, noun), (word, w), (pair, a, b), (relation, r, a, b), (compound, r, r'). "b right of
    a" is "a left of b"; "next to" counts in both directions; two nouns that share a scene without a link of their
    own count as both ordered pairs, since the caption names them together.
    """
    found: set[Combination] = set()
    for thing in plan.things:
        if thing.colour:
            found.add(("colour", thing.colour, thing.noun))
        if thing.count > 1:
            found.add(("count", COUNTS[thing.count], thing.noun))
        if thing.word:
            found.add(("word", thing.word))
    found.update(_pairs(plan))
    for link in plan.links:
        found.update(_relations(plan, link))
    found.update(("compound", *sorted((a.relation, b.relation))) for a, b in combinations(plan.links, 2))
    return found


def implied(plan: Plan) -> set[Combination]:
    """Relations that the picture shows although the caption does not say them: "riding" is also "above"."""
    found: set[Combination] = set()
    for link in plan.links:
        a, b = plan.things[link.subject].noun, plan.things[link.object].noun
        if link.relation in IMPLIES:
            found.add(("relation", IMPLIES[link.relation], a, b))
        if link.relation in IMPLIES_INVERSE:
            found |= {("relation", IMPLIES_INVERSE[link.relation], b, a), ("pair", b, a)}
    return found


def _pairs(plan: Plan) -> Iterator[Combination]:
    linked = {(link.subject, link.object) for link in plan.links if link.relation not in SYMMETRIC}
    for i, j in combinations(range(len(plan.things)), 2):
        a, b = plan.things[i].noun, plan.things[j].noun
        if (j, i) not in linked:
            yield ("pair", a, b)
        if (i, j) not in linked:
            yield ("pair", b, a)


def _relations(plan: Plan, link: Link) -> Iterator[Combination]:
    a, b = plan.things[link.subject].noun, plan.things[link.object].noun
    yield ("relation", link.relation, a, b)
    if link.relation in SYMMETRIC:
        yield ("relation", link.relation, b, a)
