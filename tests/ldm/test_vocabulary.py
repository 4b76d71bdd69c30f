"""A model's vocabulary: made from the world, written and read, and asked about prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.training import WorldConfig
from ldm.data.emoji_scenes import EmojiScenes
from ldm.data.emoji_scenes.nouns import NOUNS
from ldm.data.emoji_scenes.world import FULL, World
from ldm.vocabulary import Vocabulary, of_world, read_vocabulary, split_words, write_vocabulary

SMALL = World(
    WorldConfig(
        nouns=("cat", "dog", "owl", "banana", "apple", "crown", "top hat"),
        colours=("red", "blue"),
        places=("snow",),
        styles=("flat",),
        sizes=("small",),
        recipes=("single", "counted", "holding", "wearing", "left of"),
    )
)


@pytest.mark.parametrize("world", [FULL, SMALL])
def test_every_caption_and_every_example_is_known(world: World) -> None:
    vocabulary, scenes = of_world(world), EmojiScenes("train", seed=3, world=world)
    captions = [scenes[i].caption for i in range(300)]
    assert [text for text in (*captions, *vocabulary.examples) if vocabulary.unknown(text)] == []
    assert vocabulary.examples[0] == "a cat holding a banana"


def test_a_cut_world_knows_only_its_part() -> None:
    vocabulary = of_world(SMALL, {"guidance_scale": 4.0})
    assert vocabulary.nouns == {
        "animals": {"cat": ("kitty",), "dog": ("puppy",), "owl": ()},
        "food": {"banana": (), "apple": ()},
        "hats": {"crown": (), "top hat": ()},
    }
    assert vocabulary.relations == ("left of", "right of", "holding", "wearing")
    assert (vocabulary.colours, vocabulary.places, vocabulary.counts) == (
        ("red", "blue"),
        ("snow",),
        ("two", "three", "four"),
    )
    assert vocabulary.defaults == {"guidance_scale": 4.0}
    assert len(vocabulary.examples) == 5
    assert set(vocabulary.unknown("a zebra riding a green owl on the beach")) == {"zebra", "riding", "green", "beach"}
    assert set(of_world(FULL).nouns["animals"]) == {name for name, noun in NOUNS.items() if noun.kind == "animal"}


def test_names_singular_plural_and_possessive_are_known() -> None:
    vocabulary = of_world(SMALL)
    assert vocabulary.unknown("Two CATS, a kitty's puppies; 3 top hats!") == {}
    assert list(vocabulary.unknown("catz and cat-dog and half-dog")) == ["catz", "half-dog"]


def test_unknown_words_come_with_the_nearest_of_each_noun_once() -> None:
    vocabulary = of_world(FULL)
    assert vocabulary.unknown("a bananna") == {"bananna": ["banana"]}  # not its plural, too
    nearest = {word: near[0] for word, near in vocabulary.unknown("two bananaz on a girafe").items()}
    assert nearest == {"bananaz": "banana", "girafe": "giraffe"}
    assert vocabulary.unknown("qqqqq häuser") == {"qqqqq": [], "häuser": ["house"]}  # not the plural of its nearest
    assert list(vocabulary.unknown("zorp cat blarg zorp")) == ["zorp", "blarg"]


def test_words_on_signs_are_not_looked_at() -> None:
    vocabulary = of_world(FULL)
    assert vocabulary.unknown('a cat holding a sign that says "ZEPPELIN QUARK"') == {}
    assert list(vocabulary.unknown('a "ZEPPELIN" over a quark "X"')) == ["quark"]
    assert split_words('a “Quark” b "c" t-rex’s') == ["a", "b", "t-rex"]


def test_the_warning_names_words_and_command() -> None:
    vocabulary = of_world(SMALL)
    assert vocabulary.warning(["a cat", ""]) is None
    assert vocabulary.warning(["a dogg", "a cat", "ugly"]) == (
        'the model has never seen "dogg" (near: dog), "ugly"; `ldm vocabulary` lists what it can draw'
    )
    assert "`ldm vocabulary --model here`" in str(vocabulary.warning(["dogg"], "here"))


def test_written_and_read(tmp_path: Path) -> None:
    vocabulary = of_world(SMALL, {"guidance_scale": 4.0, "num_inference_steps": 20, "sampler": "dpmpp_2m"})
    assert read_vocabulary(tmp_path) is None
    write_vocabulary(vocabulary, tmp_path)
    assert read_vocabulary(tmp_path) == vocabulary
    raw = json.loads((tmp_path / "vocabulary.json").read_text(encoding="utf-8"))
    assert raw["nouns"]["animals"]["cat"] == ["kitty"]
    (tmp_path / "vocabulary.json").write_text(json.dumps({"words": ["cat"], "from the future": 1}))
    assert read_vocabulary(tmp_path) == Vocabulary(words=("cat",))


@pytest.mark.parametrize(
    ("json_text", "words"),
    [
        ({"words": "cat"}, "its entry 'words'"),
        ({"words": [1]}, "its entry 'words'"),
        ({"nouns": ["cat"]}, "its entry 'nouns'"),
        ({"nouns": {"animals": ["cat"]}}, "its entry 'nouns'"),
        ({"defaults": {"guidance_scale": "high"}}, "its entry 'defaults'"),
        ({"defaults": {"num_inference_steps": 0}}, "its entry 'defaults'"),
        ({"defaults": {"seed": 1}}, "its entry 'defaults'"),
        ([], "expected an object"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, json_text: Any, words: str) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps(json_text))
    with pytest.raises(ValueError, match=r"vocabulary\.json") as caught:
        read_vocabulary(tmp_path)
    assert words in str(caught.value)
