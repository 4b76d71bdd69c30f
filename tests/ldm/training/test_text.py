"""The text stage's examples: captions that are false in one fact, and nothing that is held out."""

import re
from collections import Counter

import torch

from configs.architecture import UNetConfig
from configs.training import DenoiserStage, RunConfig
from ldm.data.emoji_scenes import NOUNS, EmojiScenes, HoldOut
from ldm.data.emoji_scenes.nouns import plural
from ldm.data.emoji_scenes.vocabulary import COLOURS, COUNTS
from ldm.training.captions import token_ids
from ldm.training.text import TextTraining
from text_encoder.tokenizer import Tokenizer

SIZE = 32
_NAMES = {name for noun in NOUNS.values() for name in noun.names}


def test_an_example_depends_on_its_number_alone(training: TextTraining, tokenizer: Tokenizer) -> None:
    other = TextTraining(_run_of(training), EmojiScenes("train", seed=5), tokenizer)
    later = [other.example(index) for index in (9, 3)][::-1]
    for index, again in zip((3, 9), later, strict=True):
        example = training.example(index)
        assert example.keys() == {"image", "ids", "known"}
        assert all(torch.equal(example[name], again[name]) for name in example)
    assert example["image"].shape == (3, SIZE, SIZE)
    assert example["image"].dtype == torch.float32
    assert -1 <= float(example["image"].min()) < float(example["image"].max()) <= 1
    assert example["ids"].shape == (4, 32)
    assert example["ids"].dtype == torch.int64
    assert example["ids"][0].tolist() == token_ids(training.tokenizer, training.scenes[9].caption)


def _run_of(training: TextTraining) -> RunConfig:
    return RunConfig("tiny", text=training.config, denoiser=DenoiserStage(UNetConfig(context_dim=32)))


def _rest(caption: str, kind: str) -> list[str]:
    """A caption's words without those of one fact, without articles and verbs that go with them."""
    names = [name for noun in NOUNS.values() for name in noun.names]
    facts = {
        "swaps": [*names, *map(plural, names)],
        "nouns": [*names, *map(plural, names)],
        "colours": COLOURS,
        "counts": [*COUNTS.values(), *map(str, COUNTS)],
        "words": [],
    }
    fact = "|".join(sorted(map(re.escape, facts[kind]), key=len, reverse=True))
    text = re.sub(r'"[A-Z]+"', "", caption) if kind == "words" else re.sub(rf"\b({fact})\b", "", caption)
    return [word for word in text.replace(",", " , ").split() if word not in ("a", "an", "is", "are")]


def test_false_captions_are_false_in_one_fact(training: TextTraining) -> None:
    """Without the words of that fact they read as the true caption does; most pictures get as many as asked for."""
    kinds, missing = Counter[str](), 0
    for index in range(300):
        scene = training.scenes[index]
        told = training.false_captions(training.scenes, index, scene)
        assert len({scene.caption, *(text for _, text in told)}) == 1 + len(told)
        missing += 3 - len(told)
        for kind, text in told:
            kinds[kind] += 1
            if kind != "relations":
                assert _rest(text, kind) == _rest(scene.caption, kind)
    assert missing < 9
    assert all(kinds[kind] > 9 for kind in ("swaps", "relations", "colours", "counts", "nouns", "words")), kinds


def test_a_list_of_nouns_says_no_order(training: TextTraining) -> None:
    """Told as "cat, dog", the exchange of the two is as true as the caption itself."""
    lists = 0
    for index in range(1500):
        scene = training.scenes[index]
        names = scene.caption.split(", ")
        if len(names) == len(scene.plan.things) > 1 and all(name in _NAMES for name in names):
            lists += 1
            false = training.false_captions(training.scenes, index, scene)
            assert all(sorted(text.split(", ")) != sorted(names) for _, text in false)
    assert lists > 10


def test_what_is_held_out_is_not_told(tokenizer: Tokenizer, training: TextTraining) -> None:
    """With nearly everything held out few near-misses are left, and the missing rows are marked."""
    held = HoldOut(0.5, 0.2)
    strict = TextTraining(_run_of(training), EmojiScenes("train", seed=5, held=held), tokenizer)
    counts = Counter(int(strict.example(index)["known"].sum()) for index in range(40))
    assert min(counts) < 4
    for index in range(40):
        known, ids = (strict.example(index)[name] for name in ("known", "ids"))
        assert bool(known[0])
        assert known.tolist() == sorted(known.tolist(), reverse=True)
        assert all(row.tolist() == token_ids(strict.tokenizer, "") for row in ids[~known])


def test_measure_counts_what_is_told_right(training: TextTraining) -> None:
    shares = training.measure(training.module, 24)
    assert {"to_text", "to_image", "nouns"} <= shares.keys()
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["to_text"] < 0.5  # untrained
