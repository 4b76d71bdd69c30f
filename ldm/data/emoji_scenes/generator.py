"""The endless data set: scene i of a seed and split, the same on every machine, in any order."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ldm.data.emoji_scenes import sampling
from ldm.data.emoji_scenes.grammar import Teller
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.placing import place
from ldm.data.emoji_scenes.plan import Plan, Thing, combinations_of
from ldm.data.emoji_scenes.scene import Scene
from ldm.data.emoji_scenes.splits import SPLITS, HoldOut
from ldm.data.emoji_scenes.world import FULL, World

DEFAULT = HoldOut()
_TRIES = 50000
_PATIENCE = 300
# Where a split is drawn from only some recipes, so that its combinations are met soon.
_RECIPES: dict[str, tuple[str, ...]] = {
    "counts": ("counted",),
    "words": ("sign",),
    "compounds": ("dressed", "beside", "beside"),
    "swaps": ("left of", "above"),
    "crowds": ("crowd",),
}


def splits_of(world: World) -> tuple[str, ...]:
    """The splits that a world can fill."""
    return tuple(name for name in SPLITS if name not in _RECIPES or _recipes(name, world))


def _recipes(split: str, world: World) -> tuple[str, ...]:
    """The kinds of scenes a split is drawn from; () = any."""
    if split == "crowds":
        return ("crowd",) if {"holding", "wearing"} & set(world.recipes) and "left of" in world.recipes else ()
    return tuple(name for name in _RECIPES.get(split, ()) if name in world.recipes)


@dataclass(frozen=True)
class EmojiScenes:
    """Scenes of one split; `scenes[i]` for any i >= 0 depends on (seed, split, held, world, i) alone.

    split: a name of SPLITS; fate: "test", or "validation" for the held-out set to choose models with.
    In "swaps", scenes 2k and 2k + 1 are one plan with its two nouns exchanged and all other chance the same.
    Raises ValueError for an unknown split or fate.
    """

    split: str = "train"
    seed: int = 0
    held: HoldOut = DEFAULT
    fate: str = "test"
    world: World = FULL

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"No split {self.split!r}: use one of {', '.join(SPLITS)}.")
        if self.split not in splits_of(self.world):
            raise ValueError(f"The split {self.split!r} needs kinds of scenes that this world leaves out.")
        if self.fate not in ("test", "validation"):
            raise ValueError(f"No fate {self.fate!r}: use 'test' or 'validation'.")

    def __getitem__(self, index: int) -> Scene:
        plan, key = self._meaning(index)
        return place(plan, self._teller(key).tell(plan), Keyed("layout", *key), self.world.lattice)

    def caption(self, index: int, telling: int = 0) -> str:
        """Scene `index` in words; each further telling says the same in others."""
        plan, key = self._meaning(index)
        return self._teller((*key, "again", telling) if telling else key).tell(plan)

    def _meaning(self, index: int) -> tuple[Plan, tuple[object, ...]]:
        """What a scene shows, and the key of all other chance in it."""
        if index < 0:
            raise IndexError(f"Scenes are counted from 0 without end; {index} is before the first.")
        key = (self.seed, self.split, self.fate, index // 2 if self.split == "swaps" else index)
        plan = self._plan(key)
        return (replace(plan, things=_swapped(plan)) if self.split == "swaps" and index % 2 else plan), key

    def _teller(self, key: tuple[object, ...]) -> Teller:
        fate = self.fate if self.split == "templates" else "train"
        return Teller(key, self.held, fate, loose=self.split == "train")

    def _plan(self, key: tuple[object, ...]) -> Plan:
        draw, fits = sampling.Draw(self.world, "plan", *key), self._fits()
        recipes = tuple(sampling.RECIPES[name] for name in _recipes(self.split, self.world))
        # chosen once in the splits that every recipe can fill, so that the hold-out hardly changes their shares
        training = self.split == "train"
        patient = sampling.any_recipe(draw, training) if SPLITS[self.split] in ("", "template") else None
        for attempt in range(_TRIES):
            recipe = draw.pick(recipes) if recipes else patient if patient and attempt < _PATIENCE else None
            plan = sampling.draw_plan(draw, recipe or sampling.any_recipe(draw, training))
            if fits(plan):
                return plan
        raise ValueError(
            f"Split {self.split!r} found no scene with {self.held} in {_TRIES} tries: all of its combinations are "
            "held out, or none is. Try a fraction of 0.1 or 0.25."
        )

    def _fits(self) -> Callable[[Plan], bool]:
        kind = SPLITS[self.split]
        if self.split == "crowds":
            return lambda plan: all(
                part[0] == "compound" or self.held.fate(part) == "train" for part in combinations_of(plan)
            )
        if self.split == "swaps":
            return lambda plan: self.held.allowed(plan) and self.held.allowed(replace(plan, things=_swapped(plan)))
        if kind in ("", "template"):
            return self.held.allowed
        return lambda plan: self.held.shows(plan, kind, self.fate)


def _swapped(plan: Plan) -> tuple[Thing, ...]:
    """The two things with their nouns exchanged; colours and sizes stay in place."""
    a, b = plan.things
    return (replace(a, noun=b.noun), replace(b, noun=a.noun))
