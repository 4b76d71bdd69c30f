"""How far the checker can be trusted: on true pictures, on wrong captions, and behind an autoencoder."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

import torch
from torch import Tensor

from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.near_misses import negatives
from ldm.data.emoji_scenes.plan import Plan
from ldm.data.emoji_scenes.rendering import render
from ldm.data.emoji_scenes.scene import Scene
from ldm.evaluation.bootstrap import Interval, interval
from ldm.evaluation.checker import Checker
from ldm.evaluation.rates import Rates, rates
from ldm.evaluation.verdict import judge
from vae import Autoencoder
from vae.pixels import from_pil

Change = Callable[[Tensor], Tensor]  # pictures (b, 3, s, s) in [-1, 1] to pictures
FAR = 1_000_003  # scenes this far apart have nothing to do with each other


def scenes_of(data: EmojiScenes, amount: int) -> list[Scene]:
    """The first scenes of a split that the checker can judge: style "flat", no words on signs."""
    flat = (scene for scene in map(data.__getitem__, count()) if judgeable(scene.plan))
    return list(islice(flat, amount))


def judgeable(plan: Plan) -> bool:
    """Whether a checker of the plan's world can say anything about it."""
    return plan.style == "flat" and not any(thing.word for thing in plan.things)


def picture(scene: Scene, size: int) -> Tensor:
    """The true picture, (3, size, size) in [-1, 1]."""
    return from_pil([render(scene, size)])[0]


def true_pictures(checker: Checker, scenes: Sequence[Scene], change: Change | None = None) -> Rates:
    """How often the checker agrees with captions that are true, after `change` (a round trip, say)."""
    verdicts = []
    for scene in scenes:
        image = picture(scene, checker.size)[None]
        verdicts.append([checker.check(image if change is None else change(image), scene.plan)])
    return rates([scene.plan for scene in scenes], verdicts)


def wrong_captions(checker: Checker, data: EmojiScenes, scenes: Sequence[Scene]) -> dict[str, Interval]:
    """How often the checker agrees with captions that are false: of near misses, and of other scenes.

    Captions that happen to be true of the scene as well are left out.
    """
    near, other = [], []
    for number, scene in enumerate(scenes):
        image = picture(scene, checker.size)
        near.append([checker.check(image, plan).joint for plan in near_misses(data, scene)])
        stranger = scenes_of(_shifted(data, number), 1)[0].plan
        false = not judge(scene.objects, stranger).joint
        other.append([checker.check(image, stranger).joint] if false else [])
    return {"near misses": interval(near), "other scenes": interval(other)}


def near_misses(data: EmojiScenes, scene: Scene) -> Iterator[Plan]:
    """Plans that differ from a scene's in one fact and are false of it."""
    for plan in negatives(scene.plan, Keyed("validation", scene.caption), None, data.world):
        if not judge(scene.objects, plan).joint:
            yield plan


class RoundTrip:
    """Pictures through an autoencoder and back: what remains is the ceiling of every model on its latents."""

    def __init__(self, vae: Autoencoder) -> None:
        self.vae = vae

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(b, 3, s, s) in [-1, 1] -> the same shape, on the CPU."""
        weight = next(self.vae.parameters())
        return self.vae.decode(self.vae.encode(images.to(weight.device, weight.dtype)).mode()).float().cpu()


def validation(
    checker: Checker, splits: Sequence[EmojiScenes], amount: int, vae: Autoencoder | None = None
) -> dict[str, dict[str, Interval]]:
    """Every rate of the checker itself; rows "true pictures: SPLIT", "wrong captions: SPLIT", "round trips: SPLIT"."""
    found: dict[str, dict[str, Interval]] = {}
    for data in splits:
        scenes = scenes_of(data, amount)
        found[f"true pictures: {data.split}"] = true_pictures(checker, scenes)
        found[f"wrong captions: {data.split}"] = wrong_captions(checker, data, scenes)
        if vae is not None:
            found[f"round trips: {data.split}"] = true_pictures(checker, scenes, RoundTrip(vae))
    return found


def _shifted(data: EmojiScenes, number: int) -> EmojiScenes:
    """Another seed of the same split."""
    return EmojiScenes(data.split, data.seed + FAR + number, data.held, data.fate, data.world)
