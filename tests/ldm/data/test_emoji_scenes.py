"""The generator: the same scene everywhere, in any order; words, sentences and ground truth that fit."""

import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from ldm.data.emoji_scenes import SPLITS, EmojiScenes, HoldOut, negatives, words
from ldm.data.emoji_scenes.keyed import Keyed, share
from ldm.data.emoji_scenes.lexicon import split_words
from ldm.data.emoji_scenes.nouns import NOUNS, plural
from ldm.data.emoji_scenes.phrases import PHRASES
from ldm.data.emoji_scenes.plan import Link, Plan, Thing, combinations_of, implied
from ldm.data.emoji_scenes.vocabulary import SCENES, SIZES

SHOW = """
from ldm.data.emoji_scenes import EmojiScenes, SPLITS
import hashlib
text = "".join(repr(EmojiScenes(split, seed=7)[i]) for split in SPLITS for i in (3, 0, 1000003))
print(hashlib.sha256(text.encode()).hexdigest())
"""
# Of SHOW's text. It changes with any noun, sentence or number of the world: then models trained before see another one.
FINGERPRINT = "b0e0df22accb1cd5f3f353ae61bf30350b01f9bacfb6686496096e48dcdd7e2c"


def test_scenes_are_the_same_on_every_machine_and_hash_seed() -> None:
    texts = []
    for seed in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", SHOW],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        )
        assert run.returncode == 0, run.stderr
        texts.append(run.stdout.strip())
    assert texts == [FINGERPRINT] * 2


def test_a_scene_does_not_depend_on_the_scenes_before() -> None:
    forward = [EmojiScenes("train", seed=1)[i] for i in range(50)]
    backward = [EmojiScenes("train", seed=1)[i] for i in reversed(range(50))]
    assert forward == backward[::-1]
    assert len({scene.caption for scene in forward}) > 45


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "iid"}, {"split": "pairs"}])
def test_seed_and_split_change_the_scenes(change) -> None:
    base, other = EmojiScenes(), EmojiScenes(**change)
    assert sum(base[i].caption == other[i].caption for i in range(50)) <= 2


def test_training_and_iid_share_no_scene() -> None:
    train = {repr(EmojiScenes()[i].sprites) for i in range(3000)}
    assert not train & {repr(EmojiScenes("iid")[i].sprites) for i in range(3000)}


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(IndexError, match="counted from 0"):
        EmojiScenes()[-1]


def test_draws_are_even() -> None:
    draw = Keyed("even")
    counts = [0] * 7
    for _ in range(14000):
        counts[draw.pick(range(7))] += 1
    assert max(abs(count - 2000) for count in counts) < 200
    mean = sum(share("mean", i) for i in range(10000)) / 10000
    assert abs(mean - 0.5) < 0.01


def test_splitmix64_is_the_published_one() -> None:
    draw = Keyed()
    draw.state = 1234567
    assert [draw.bits() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_world_has_two_hundred_nouns_with_names_of_their_own() -> None:
    assert len(NOUNS) >= 200
    names = [name for noun in NOUNS.values() for name in noun.names]
    assert len(names) == len(set(names))
    emoji = [noun.emoji for noun in NOUNS.values() if noun.emoji != "#"]
    assert len(emoji) == len(set(emoji))


def test_every_word_of_every_caption_is_in_the_lexicon() -> None:
    known = set(words())
    for split in SPLITS:
        scenes = EmojiScenes(split, seed=8)
        for i in range(1500 if split == "train" else 150):
            caption = scenes[i].caption
            assert set(split_words(caption)) <= known, caption
            assert len(caption.split()) <= 32
            assert "{" not in caption
            assert "  " not in caption
    assert 400 < len(known) < 2000


def test_captions_agree_in_article_and_number() -> None:
    for i in range(5000):
        tokens = EmojiScenes("train", seed=9)[i].caption.replace(",", "").split()
        for word, following in pairwise(tokens):
            vowel = (following[0] in "aeiou" and following not in ("unicorn", "ufo")) or following == "hourglass"
            if word in ("a", "an") and not following.startswith('"'):
                assert (word == "an") == vowel, (word, following)
    assert [plural(word) for word in ("cherry", "box", "mouse", "boy", "mango")] == [
        "cherries",
        "boxes",
        "mice",
        "boys",
        "mangoes",
    ]


def test_objects_are_the_things_of_the_plan() -> None:
    for i in range(1500):
        scene = EmojiScenes("train", seed=10)[i]
        for number, thing in enumerate(scene.plan.things):
            mine = [one for one in scene.objects if one.thing == number]
            assert len(mine) == thing.count, scene.caption
            assert {(o.noun, o.colour, o.size, o.word) for o in mine} == {
                (thing.noun, thing.colour, thing.size, thing.word)
            }
        assert [one.depth for one in scene.objects] == list(range(len(scene.objects)))
        for one in scene.objects:
            assert min(one.box) >= 0, (scene.caption, one)
            assert max(one.box) <= 1, (scene.caption, one)


def test_size_words_mean_what_they_say() -> None:
    """The longer side of the ink of a single sized thing is in its word's range, and the ranges do not touch."""
    ranges = [SIZES[word] for word in ("tiny", "small", "", "big", "huge")]
    assert all(a[1] < b[0] for a, b in pairwise(ranges))
    seen = set()
    for i in range(4000):
        scene = EmojiScenes("train", seed=11)[i]
        if len(scene.objects) == 1 and scene.objects[0].size:
            box, (low, high) = scene.objects[0].box, SIZES[scene.objects[0].size]
            assert 0.9 * low <= max(box[2] - box[0], box[3] - box[1]) <= high, scene.caption
            seen.add(scene.objects[0].size)
    assert seen == {"tiny", "small", "big", "huge"}


def test_paraphrases_and_inverses_are_one_combination() -> None:
    things = (Thing("cat"), Thing("dog"))
    plan = Plan(things, (Link("left of", 0, 1),))
    same = Plan(things[::-1], (Link("left of", 1, 0),))
    assert (
        combinations_of(plan)
        == combinations_of(same)
        == {("relation", "left of", "cat", "dog"), ("pair", "cat", "dog")}
    )
    both = combinations_of(Plan(things, (Link("next to", 0, 1),)))
    assert both == combinations_of(Plan(things[::-1], (Link("next to", 0, 1),)))
    assert ("pair", "dog", "cat") in both
    assert implied(Plan(things, (Link("riding", 0, 1),))) == {("relation", "above", "cat", "dog")}


ENGLISH = {
    "left of": (
        "A (to the |on the )?left of B",
        "B (to the |on the )?right of A",
        "A on the left and B on the right",
        "B on the right and A on the left",
    ),
    "above": (
        "A (above|over|higher up than) B",
        "B (below|under|lower down than) A",
        "A at the top and B at the bottom",
        "B at the bottom and A at the top",
    ),
    "holding": ("A (holding|that holds|carrying|with) B( in its paws)?", "B (held by|in the paws of) A"),
    "wearing": ("A (wearing|that wears|with|dressed in) B( on its head)?", "B (on the head of|worn by) A"),
    "riding": ("A (riding|that rides|riding on|sitting astride) B", "B ridden by A", "B with A on its back"),
    "on top of": ("A (on top of|on|lying on|standing on) B", "B with A on top", "B supporting A"),
    "inside": ("A (inside|in|placed in|peeking out of) B", "B with A inside", "B containing A"),
    "next to": ("A (next to|beside|and|together with|close to) B", "A and B side by side"),
}


def test_every_phrase_says_its_relation_in_english() -> None:
    """Written out a second time, with A for the subject: a turned phrase would teach left for right."""
    assert set(ENGLISH) == set(PHRASES)
    for relation, options in PHRASES.items():
        for option in options:
            text = option.replace("{a}", "A").replace("{b}", "B")
            assert any(re.fullmatch(pattern, text) for pattern in ENGLISH[relation]), (relation, option)


def test_holding_out_leaves_the_mixture_of_recipes() -> None:
    """Whatever the hold-out refuses is drawn again from the same recipe: rare compounds do not become rarer."""
    scenes = EmojiScenes("train", seed=14, held=HoldOut(0.25))
    sizes = [len(scenes[i].plan.links) for i in range(3000)]
    assert 0.045 < sizes.count(2) / 3000 < 0.08
    places = [scenes[i].plan.background.kind in SCENES for i in range(1000)]
    assert 0.15 < sum(places) / 1000 < 0.45


def test_negatives_differ_and_keep_the_hold_out() -> None:
    held = HoldOut(0.25)
    kinds = set()
    for i in range(2000):
        plan = EmojiScenes("train", seed=12, held=held)[i].plan
        for other in negatives(plan, Keyed(i), held):
            assert combinations_of(other) != combinations_of(plan)
            assert held.allowed(other)
            kinds |= {one[0] for one in combinations_of(other) ^ combinations_of(plan)}
    assert {"colour", "count", "relation", "pair"} <= kinds


def test_a_thousand_scenes_a_second() -> None:
    scenes = EmojiScenes("train", seed=13)
    scenes[0]
    start = time.process_time()
    for i in range(1000):
        scenes[i]
    assert time.process_time() - start < 1.0
