"""Named splits: which combinations the training scenes never show, decided by a hash of the combination.

"iid" holds nothing out (new scenes of what training shows). Every other split shows exactly one kind of held-out
combination and is else like training, so that a failure has one cause. "swaps" are pairs of scenes with their nouns
exchanged; "crowds" have four things, one more than any training scene (at a fraction of 0.5 they take seconds each to
find, as nearly every crowd meets something held out).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ldm.data.emoji_scenes.keyed import digest, share
from ldm.data.emoji_scenes.plan import Combination, Plan, combinations_of, implied

# Split -> the kind of combination it holds out ("" = none by hash).
SPLITS: dict[str, str] = {
    "train": "",
    "iid": "",
    "colours": "colour",
    "pairs": "pair",
    "relations": "relation",
    "counts": "count",
    "compounds": "compound",
    "words": "word",
    "templates": "template",
    "swaps": "",
    "crowds": "",
}
# Few values each: the hash ranks them and the first share is held out, so that enough stay for training.
_WITH = {
    "holding": ("left of", "above", "next to"),
    "riding": ("left of", "above"),
    "wearing": ("left of", "above", "next to", "holding", "riding"),
}
COMPOUNDS = tuple(("compound", *sorted((a, b))) for a, others in _WITH.items() for b in others)


@dataclass(frozen=True, slots=True)
class HoldOut:
    """What is held out for testing and, disjoint from it, for choosing models ("validation").

    fraction: the share of each kind's combinations for testing (0.1, 0.25, 0.5 are the benchmark's levels; a larger
    one contains the smaller); validation: the further share, taken from the other end of the hash's range.
    """

    fraction: float = 0.1
    validation: float = 0.05
    salt: str = "emoji scenes 1"

    def __post_init__(self) -> None:
        if min(self.fraction, self.validation) < 0 or self.fraction + self.validation > 0.75:
            raise ValueError(
                f"fraction {self.fraction} and validation {self.validation} must be at least 0 and together at most "
                "0.75: training needs to see every word."
            )

    def fate(self, combination: Combination) -> str:
        """ "test", "validation" or "train", for one combination."""
        if combination[0] == "compound":
            return self.ranked(combination, _chain(combination))
        return _by_share(self, combination)

    def ranked(self, item: Combination, among: Sequence[Combination]) -> str:
        """The fate of one of a few: the first ones by hash are held out, at least one of three or more."""
        order = sorted(among, key=lambda one: digest(self.salt, *one))
        held = max(round(self.fraction * len(order)), 1 if self.fraction else 0) if len(order) > 2 else 0
        kept = max(round(self.validation * len(order)), 1 if self.validation else 0) if len(order) > 3 else 0
        place = order.index(item)
        if place < held:
            return "test"
        return "validation" if place >= len(order) - kept else "train"

    def template(self, kind: str, key: str, option: str, options: Sequence[str]) -> str:
        """The fate of one sentence of a list. The first is always trained: the plainest way to say it."""
        if option == options[0]:
            return "train"
        return self.ranked(("template", kind, key, option), [("template", kind, key, one) for one in options[1:]])

    def allowed(self, plan: Plan) -> bool:
        """Whether training may show the plan: at most three things, nothing held out, said or implied."""
        if len(plan.things) > 3:
            return False
        return all(self.fate(one) == "train" for one in combinations_of(plan) | implied(plan))

    def shows(self, plan: Plan, kind: str, fate: str = "test") -> bool:
        """Whether the plan says a held-out combination of this kind and none of another kind or fate."""
        fates = {(one[0], self.fate(one)) for one in combinations_of(plan)}
        held = {(k, f) for k, f in fates if f != "train"}
        return held == {(kind, fate)}


def _chain(combination: Combination) -> tuple[Combination, ...]:
    return COMPOUNDS if combination in COMPOUNDS else (combination,)


@lru_cache(maxsize=1 << 18)
def _by_share(held: HoldOut, combination: Combination) -> str:
    place = share(held.salt, *combination)
    if place < held.fraction:
        return "test"
    return "validation" if place >= 1 - held.validation else "train"
