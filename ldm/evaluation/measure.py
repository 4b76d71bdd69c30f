"""A drawing function, measured: prompts of each split times seeds, drawn, checked, and summed up with intervals."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ldm.data.emoji_scenes.generator import EmojiScenes, splits_of
from ldm.data.emoji_scenes.scene import Scene
from ldm.data.emoji_scenes.splits import SPLITS
from ldm.data.emoji_scenes.world import World
from ldm.evaluation.baselines import Draw, in_batches
from ldm.evaluation.bootstrap import Interval
from ldm.evaluation.checker import Checker
from ldm.evaluation.rates import Rates, of_relations, pair_rate, rates
from ldm.evaluation.validate import scenes_of
from ldm.evaluation.verdict import Verdict

Progress = Callable[[str], None]
UNJUDGED = ("train", "words")  # what training shows, and what the checker cannot read


@dataclass(frozen=True)
class Amount:
    """How much is drawn: prompts of each split, pictures (seeds) of each prompt, pictures at once, first seed."""

    prompts: int = 200
    seeds: int = 4
    batch: int = 16
    first_seed: int = 0

    def __post_init__(self) -> None:
        if min(self.prompts, self.seeds, self.batch) < 1:
            raise ValueError("prompts, seeds and batch are counted from 1: an evaluation draws something.")


def splits_for(world: World, wanted: Iterable[str] = ()) -> tuple[str, ...]:
    """The splits to measure on a world: all it can fill and the checker can judge, or those wanted.

    Raises ValueError for a name that is no split, or one that this world cannot fill.
    """
    able = tuple(name for name in splits_of(world) if name not in (*UNJUDGED, "crowds"))
    wanted = tuple(wanted)
    for name in wanted:
        if name not in SPLITS or name in UNJUDGED or name not in splits_of(world):
            raise ValueError(f"The split {name!r} cannot be measured on this world: use {', '.join(able)}.")
    return wanted or tuple(name for name in able if _fillable(name, world))


def _fillable(split: str, world: World) -> bool:
    """Whether a small world has anything held out of this kind."""
    try:
        EmojiScenes(split, world=world)[0]
    except ValueError:
        return False
    return True


def measured(draw: Draw, checker: Checker, data: EmojiScenes, amount: Amount) -> dict[str, Rates]:
    """A split's rates: {"all": ..., "kinds": joint by kind of scene}; swaps also "both of a pair" in "all"."""
    prompts = amount.prompts + amount.prompts % 2 if data.split == "swaps" else amount.prompts
    scenes = scenes_of(data, prompts)
    verdicts = verdicts_of(draw, checker, scenes, seeds_of(data, len(scenes), amount), amount.batch)
    plans = [scene.plan for scene in scenes]
    found = rates(plans, verdicts)
    if data.split == "swaps":
        found["both of a pair"] = pair_rate(verdicts)
    return {"all": found, "kinds": of_relations(plans, verdicts)}


def seeds_of(data: EmojiScenes, prompts: int, amount: Amount) -> list[list[int]]:
    """The seeds of each prompt, all different; the two of a swap have the same, so that only the words differ."""
    group = 2 if data.split == "swaps" else 1
    starts = (amount.first_seed + (number // group) * amount.seeds for number in range(prompts))
    return [[(start + k) % 2**32 for k in range(amount.seeds)] for start in starts]


def verdicts_of(
    draw: Draw, checker: Checker, scenes: Sequence[Scene], seeds: Sequence[Sequence[int]], batch: int
) -> list[list[Verdict]]:
    """One verdict for each scene's caption and seed: [prompt][seed]."""
    for scene in scenes:
        checker.require(scene.plan)
    jobs = [(scene, seed) for scene, row in zip(scenes, seeds, strict=True) for seed in row]
    found: list[Verdict] = []
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        images = in_batches(draw, [scene.caption for scene, _ in part], [seed for _, seed in part], batch)
        found += [checker.check(image, scene.plan) for image, (scene, _) in zip(images, part, strict=True)]
    rest = iter(found)
    return [[next(rest) for _ in row] for row in seeds]


def compared(
    draws: Mapping[str, Draw], checker: Checker, data: EmojiScenes, amount: Amount, progress: Progress | None = None
) -> dict[str, Interval]:
    """The joint rate of several drawing functions on the same prompts and seeds of one split: for sweeps."""
    found = {}
    for name, draw in draws.items():
        found[name] = measured(draw, checker, data, amount)["all"]["joint"]
        if progress is not None:
            progress(f"{name}: {found[name]}")
    return found
