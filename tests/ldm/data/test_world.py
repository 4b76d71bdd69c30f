"""A part of the world: scenes and captions stay inside it, and a part that cannot be drawn is refused."""

import pytest

from configs.files import read, run_file
from configs.training import RunConfig, WorldConfig
from ldm.data.emoji_scenes import FULL, EmojiScenes, Keyed, World, negatives, splits_of, words
from ldm.data.emoji_scenes.lexicon import split_words

SMALL = World(read(run_file("emoji-small"), RunConfig).world)


def test_the_whole_world_is_the_default():
    assert (
        EmojiScenes("train", 0)[5] == EmojiScenes("train", 0, world=FULL)[5] == EmojiScenes("train", world=World())[5]
    )
    assert splits_of(FULL) == ("train", "iid", "colours", "pairs", "relations", "counts", "compounds", "words",
                               "templates", "swaps", "crowds")  # fmt: skip


@pytest.mark.parametrize("split", splits_of(SMALL))
def test_scenes_stay_inside(split):
    scenes, known = EmojiScenes(split, 3, world=SMALL), set(words(SMALL))
    met = set()
    for index in range(60):
        scene = scenes[index]
        met |= {thing.noun for thing in scene.plan.things}
        assert {thing.colour for thing in scene.plan.things} <= {"", *SMALL.colours}
        assert {thing.size for thing in scene.plan.things} <= {"", *SMALL.sizes}
        assert {link.relation for link in scene.plan.links} <= set(SMALL.recipes)
        assert scene.plan.background.kind in {"plain", "gradient", *SMALL.places}
        assert scene.plan.background.colour in {"", *SMALL.colours}
        assert scene.plan.style == "flat"
        assert set(split_words(scene.caption)) <= known
        for other in negatives(scene.plan, Keyed("test", index), world=SMALL):
            assert {link.relation for link in other.links} <= set(SMALL.recipes)
            assert {thing.colour for thing in other.things} <= {"", *SMALL.colours}
    assert met <= set(SMALL.nouns)


def test_small_world_has_what_the_embedded_model_must_draw():
    from ldm.data.emoji_scenes import NOUNS

    kinds = [NOUNS[noun].kind for noun in SMALL.nouns]
    assert kinds.count("animal") >= 16
    assert len(kinds) - kinds.count("animal") - kinds.count("hat") - kinds.count("person") >= 20
    assert kinds.count("hat") >= 3
    assert {"cat", "banana"} <= set(SMALL.nouns)
    assert len(SMALL.places) + len(SMALL.colours) >= 8


def test_words_of_a_part_are_fewer():
    assert set(words(SMALL)) < set(words())
    assert "helicopter" not in words(SMALL)
    assert "riding" not in words(SMALL)


def test_order_of_a_list_changes_nothing():
    a = World(WorldConfig(nouns=("cat", "dog", "apple", "banana"), recipes=("single", "left of")))
    b = World(WorldConfig(nouns=("banana", "dog", "cat", "apple"), recipes=("left of", "single")))
    assert [EmojiScenes("train", 0, world=a)[i] for i in range(9)] == [
        EmojiScenes("train", 0, world=b)[i] for i in range(9)
    ]


def test_shares_say_how_often_training_meets_a_kind_of_scene():
    recipes = ("wearing", "single")  # not in the world's order
    world = World(WorldConfig(recipes=recipes, shares=(9, 1)))
    plain = World(WorldConfig(recipes=recipes))

    def worn(split, world):
        scenes = EmojiScenes(split, 0, world=world)
        return sum(bool(scenes[i].plan.links) for i in range(300)) / 300

    assert worn("train", world) == pytest.approx(0.9, abs=0.06)
    assert worn("iid", world) == worn("iid", plain) == pytest.approx(7 / 23, abs=0.08)  # what is measured stays


@pytest.mark.parametrize("shares", [(1,), (1, 0), (1, 1, 1)])
def test_one_share_for_each_kind(shares):
    with pytest.raises(ValueError, match="2 numbers above 0, one for each of recipes"):
        WorldConfig(recipes=("single", "wearing"), shares=shares)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (WorldConfig(nouns=("cat", "bananna")), "no noun 'bananna': did you mean 'banana'"),
        (WorldConfig(colours=("grey",)), "no colour 'grey': did you mean 'gray'"),
        (WorldConfig(recipes=("hold",)), "no kind of scene 'hold'"),
        (WorldConfig(nouns=("cat", "dog"), recipes=("holding",)), "'holding' needs two or more nouns of the role 'h'"),
        (WorldConfig(recipes=("dressed", "wearing")), "'dressed' is made of others: add holding or riding"),
    ],
)
def test_impossible_parts_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        World(config)


def test_a_split_without_its_scenes_is_refused():
    with pytest.raises(ValueError, match="split 'words' needs kinds of scenes that this world leaves out"):
        EmojiScenes("words", world=SMALL)


def test_further_tellings_say_the_same_scene_in_other_words():
    scenes = EmojiScenes("train", 0, world=SMALL)
    told = [{scenes.caption(i, telling) for telling in range(6)} for i in range(20)]
    assert all(scenes.caption(i) == scenes[i].caption for i in range(20))
    assert sum(len(captions) for captions in told) > 90
