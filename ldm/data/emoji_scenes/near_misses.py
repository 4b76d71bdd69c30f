"""Plans that are nearly right: for contrastive training and for testing that a checker says no."""

from collections.abc import Iterator
from dataclasses import replace

from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.plan import Plan
from ldm.data.emoji_scenes.splits import HoldOut
from ldm.data.emoji_scenes.vocabulary import COUNTS, SPATIAL, SYMMETRIC
from ldm.data.emoji_scenes.world import FULL, World


def negatives(plan: Plan, draw: Keyed, held: HoldOut | None = None, world: World = FULL) -> list[Plan]:
    """Plans that differ in one fact: nouns exchanged, another relation, colour or count.

    held: leave out what training must not show, also not in words; None keeps all.
    """
    turned = [other for other in _related(plan) if all(link.relation in world.recipes for link in other.links)]
    changed = [*_exchanged(plan), *turned, *_coloured(plan, draw, world.colours), *_counted(plan, draw)]
    return [other for other in changed if held is None or held.allowed(other)]


def _exchanged(plan: Plan) -> Iterator[Plan]:
    """Subject and object exchanged where the relation has a direction, colours exchanged where they differ."""
    if len(plan.things) != 2:
        return
    a, b = plan.things
    relation = plan.links[0].relation
    if relation in SPATIAL and relation not in SYMMETRIC:
        yield replace(plan, things=(replace(a, noun=b.noun), replace(b, noun=a.noun)))
    if a.colour != b.colour and not (a.word or b.word):
        yield replace(plan, things=(replace(a, colour=b.colour), replace(b, colour=a.colour)))


def _related(plan: Plan) -> Iterator[Plan]:
    """The spatial relation turned by a quarter: "next to" may be true of what is left, so it is no negative."""
    turned = {"left of": "above", "above": "left of", "next to": "above"}
    for number, link in enumerate(plan.links):
        if link.relation in turned:
            links = list(plan.links)
            links[number] = replace(link, relation=turned[link.relation])
            yield replace(plan, links=tuple(links))


def _coloured(plan: Plan, draw: Keyed, colours: tuple[str, ...]) -> Iterator[Plan]:
    for number, thing in enumerate(plan.things):
        others = [colour for colour in colours if colour != thing.colour]
        if thing.colour and others:
            other = draw.pick(others)
            things = list(plan.things)
            things[number] = replace(thing, colour=other)
            yield replace(plan, things=tuple(things))


def _counted(plan: Plan, draw: Keyed) -> Iterator[Plan]:
    for number, thing in enumerate(plan.things):
        if thing.count > 1:
            count = draw.pick([count for count in COUNTS if abs(count - thing.count) == 1])
            things = list(plan.things)
            things[number] = replace(thing, count=count)
            yield replace(plan, things=tuple(things))
