"""The checker against scenes whose truth is known: right captions accepted, wrong ones refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.emoji_scenes import EmojiScenes, render
from ldm.data.emoji_scenes.keyed import Keyed
from ldm.data.emoji_scenes.placing import place
from ldm.data.emoji_scenes.plan import Background, Link, Plan, Thing
from ldm.data.emoji_scenes.world import World
from ldm.evaluation.bank import BLUR, cut, smooth, tint_ends
from ldm.evaluation.checker import Checker
from ldm.evaluation.matching import Match, Matcher
from ldm.evaluation.validate import near_misses, picture, scenes_of
from ldm.evaluation.verdict import judge

PALE = Background("plain", "", 0)


def drawn(*things: Thing, links: tuple[Link, ...] = (), chance: int = 0) -> tuple[Plan, Tensor]:
    plan = Plan(things, links, PALE)
    return plan, picture(place(plan, "", Keyed("test", chance)), 128)


def softened(image: Tensor, seed: int) -> Tensor:
    """What a small autoencoder might leave: 60 % of the resolution, a blur of one pixel, noise."""
    small = F.interpolate(image[None], scale_factor=0.6, mode="bilinear", antialias=True)
    kernel = torch.exp(-(torch.arange(-3.0, 4) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 7)
    large = F.pad(F.interpolate(small, size=image.shape[-2:], mode="bilinear"), (3,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(large, kernel, groups=3), kernel.mT, groups=3)[0]
    return blurred + 0.06 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(seed))


def test_each_noun_alone_is_found_where_it_is_and_nothing_else(checker: Checker, world: World) -> None:
    for number, noun in enumerate(world.nouns):
        colour = ("", *world.colours)[number % 4]
        plan = Plan((Thing(noun, colour),), (), PALE)
        scene = place(plan, "", Keyed("alone", number))
        others = [world.nouns[(number + k) % len(world.nouns)] for k in (1, 4)]
        (found,) = checker.detect(render(scene), [noun, *others])
        assert (found.noun, found.colour) == (noun, colour)
        assert found.box == pytest.approx(scene.objects[0].box, abs=0.02)


def test_true_captions_are_accepted(checker: Checker, world: World) -> None:
    scenes = scenes_of(EmojiScenes("iid", seed=3, world=world), 30)
    right = [checker.check(picture(scene, 128), scene.plan).joint for scene in scenes]
    assert sum(right) == 30


def test_true_captions_are_accepted_behind_a_blur_and_noise(checker: Checker, world: World) -> None:
    scenes = scenes_of(EmojiScenes("iid", seed=4, world=world), 16)
    right = [checker.check(softened(picture(scene, 128), n), scene.plan).joint for n, scene in enumerate(scenes)]
    assert sum(right) >= 15


def test_captions_with_one_wrong_fact_are_refused(checker: Checker, world: World) -> None:
    data = EmojiScenes("iid", seed=5, world=world)
    wrong = [(scene, plan) for scene in scenes_of(data, 30) for plan in near_misses(data, scene)][:30]
    assert len(wrong) == 30
    assert sum(checker.check(picture(scene, 128), plan).joint for scene, plan in wrong) == 0


def test_a_verdict_tells_what_is_wrong(checker: Checker) -> None:
    plan, image = drawn(Thing("cat"), Thing("apple", "blue"), links=(Link("left of", 0, 1),))
    assert checker.check(image, plan).joint
    cat, apple = plan.things

    def verdict(*things: Thing, relation: str = "left of") -> tuple[bool, bool, bool, bool]:
        one = checker.check(image, replace(plan, things=things, links=(Link(relation, 0, 1),)))
        return one.nouns, one.colours, one.counts, one.relations

    assert verdict(apple, cat) == (True, True, True, False)
    assert verdict(cat, apple, relation="above") == (True, True, True, False)
    assert verdict(cat, replace(apple, colour="green")) == (True, False, True, True)
    assert verdict(cat, replace(apple, count=2)) == (True, True, False, True)
    assert verdict(replace(cat, noun="dog"), apple) == (False, True, False, False)


def test_a_thing_on_nearly_its_own_colour_is_told_from_an_empty_place() -> None:
    colour, alpha = cut("rabbit", 40)
    grey = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    dark, light = tint_ends("green")
    ground = torch.tensor([90.0, 170, 70]).view(3, 1, 1).expand(3, 128, 128) / 255  # a meadow's
    image = ground.clone()
    image[:, 44:84, 44:84] += alpha * (dark + (light - dark) * grey - image[:, 44:84, 44:84])
    at = Match("rabbit", "green", 44, 44, 40, 0.0)
    there, empty = (Matcher(smooth(one, BLUR)).near(at).score for one in (image, ground))
    assert there > 0.3
    assert empty < 0


@pytest.mark.parametrize("count", [2, 3])
def test_copies_are_counted(checker: Checker, count: int) -> None:
    plan, image = drawn(Thing("apple", count=count), chance=count)
    assert checker.check(image, plan).joint
    for other in {1, 2, 3, 4} - {count}:
        assert not checker.check(image, Plan((Thing("apple", count=other),), (), PALE)).counts


def test_an_empty_picture_shows_nothing(checker: Checker, world: World) -> None:
    noise = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for image in (torch.zeros(3, 128, 128), torch.ones(1, 3, 128, 128), noise):
        assert checker.detect(image, world.nouns[:4]) == []


def test_pictures_of_another_size_and_kind_are_the_same_pictures(checker: Checker) -> None:
    plan = Plan((Thing("cat"), Thing("banana")), (Link("holding", 0, 1),), PALE)
    scene = place(plan, "", Keyed("sizes"))
    for image in (render(scene, 256), picture(scene, 128), picture(scene, 192)[None]):
        assert checker.check(image, plan).joint


def test_the_judge_agrees_with_every_scene_of_the_world(world: World) -> None:
    for split in ("iid", "swaps"):
        data = EmojiScenes(split, seed=6, world=world)
        assert all(judge(data[i].objects, data[i].plan).joint for i in range(60))


def test_what_cannot_be_judged_is_refused(checker: Checker) -> None:
    image = torch.zeros(3, 128, 128)
    for plan, message in (
        (Plan((Thing("cat"),), style="outline"), "style 'outline'"),
        (Plan((Thing("cat", word="HI"),)), "word 'HI'"),
        (Plan((Thing("volcano"),)), "no 'volcano'"),
        (Plan((Thing("cat", "brown"),)), "no colour 'brown'"),
    ):
        with pytest.raises(ValueError, match=message):
            checker.check(image, plan)
    with pytest.raises(ValueError, match="One picture"):
        checker.detect(torch.zeros(2, 3, 128, 128))
    with pytest.raises(ValueError, match="64 or more"):
        Checker(32)
