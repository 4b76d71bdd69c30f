"""Verdicts to rates: what is right how often, for each part of the captions and for all of it."""

from collections.abc import Sequence
from typing import TypeVar

from ldm.data.emoji_scenes.plan import Plan
from ldm.evaluation.bootstrap import Interval, interval
from ldm.evaluation.verdict import Verdict

T = TypeVar("T")
Rates = dict[str, Interval]


def rates(plans: Sequence[Plan], verdicts: Sequence[Sequence[Verdict]]) -> Rates:
    """Rates over prompts x seeds, verdicts[prompt][seed]; a rate counts only the prompts that say something of it.

    "relations given nouns": of the pictures that show all nouns.
    """
    pairs = list(zip(plans, verdicts, strict=True))
    related = [(plan, row) for plan, row in pairs if plan.links]
    return {
        "nouns": interval([[one.nouns for one in row] for _, row in pairs]),
        "colours": interval([[one.colours for one in row] for plan, row in pairs if _coloured(plan)]),
        "counts": interval([[one.counts for one in row] for _, row in pairs]),
        "counts above one": interval([[one.counts for one in row] for plan, row in pairs if _counted(plan)]),
        "relations": interval([[one.relations for one in row] for _, row in related]),
        "relations given nouns": interval([[one.relations for one in row if one.nouns] for _, row in related]),
        "joint": interval([[one.joint for one in row] for _, row in pairs]),
    }


def pair_rate(verdicts: Sequence[Sequence[Verdict]]) -> Interval:
    """Of swaps, prompts 2k and 2k + 1: how often both pictures of one seed are right. The pairs are the clusters."""
    if len(verdicts) % 2:
        raise ValueError(f"Swaps come in pairs, but there are {len(verdicts)} prompts: use an even number.")
    both = zip(verdicts[::2], verdicts[1::2], strict=True)
    return interval([[a.joint and b.joint for a, b in zip(*rows, strict=True)] for rows in both])


def of_relations(plans: Sequence[Plan], verdicts: Sequence[Sequence[Verdict]]) -> Rates:
    """The joint rate for each kind of scene: "left of", "holding" ..., "counted", "single"."""
    found: dict[str, list[list[bool]]] = {}
    for plan, row in zip(plans, verdicts, strict=True):
        found.setdefault(kind(plan), []).append([one.joint for one in row])
    return {name: interval(found[name]) for name in sorted(found)}


def kind(plan: Plan) -> str:
    """The relations of a plan in a row, else "counted" or "single"."""
    if plan.links:
        return " + ".join(link.relation for link in plan.links)
    return "counted" if _counted(plan) else "single"


def _coloured(plan: Plan) -> bool:
    return any(thing.colour for thing in plan.things)


def _counted(plan: Plan) -> bool:
    return any(thing.count > 1 for thing in plan.things)
