"""Our own byte-pair tokenizer, against transformers reading the files it saves."""

import random
from pathlib import Path

import pytest

from ldm.data.emoji_scenes import EmojiScenes, words
from ldm.training.bpe import build_tokenizer
from text_encoder.tokenizer import Tokenizer

OTHER = [
    "",
    "xylophone quokka zzyzx",
    "Straße, café & ünï — 🐈 日本語 \u0301e",
    "catcat catdog bananas ban",
    "don't! \"stop\", it's 42 half-open t-rex...",
    "the\tquick\nbrown  FOX",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(words(), max_length=32)


def test_every_word_is_one_token(tokenizer: Tokenizer) -> None:
    lengths = {word: len(tokenizer.encode(word)) for word in words()}
    assert {word: n for word, n in lengths.items() if n != 1} == {"t-rex": 3, "t-rexes": 3}  # as CLIP cuts them
    known = {tuple(tokenizer.encode(word)) for word in words()}
    assert len(known) == len(words())


def test_words_that_get_in_each_others_way() -> None:
    """Random words of two letters share all their pairs: merges learnt one word at a time would break others."""
    draw = random.Random(0)
    hard = {"".join(draw.choices("ab", k=draw.randint(1, 9))) for _ in range(200)} | {"aaaa", "aaaaa", "abababab"}
    tokenizer = build_tokenizer(sorted(hard), max_length=8)
    assert {word for word in hard if len(tokenizer.encode(word)) != 1} == set()


def test_letters_digits_and_punctuation_are_one_token_each(tokenizer: Tokenizer) -> None:
    for character in "abcxyz0123456789,\"'.-!":
        assert len(tokenizer.encode(character)) == 1
    assert tokenizer.comma is not None


def test_transformers_reads_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    scenes = EmojiScenes("train", seed=3)
    for text in [*(scenes[index].caption for index in range(300)), *OTHER]:
        ids = tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        if len(ids) <= 30:
            padded = theirs(text, padding="max_length", truncation=True)["input_ids"]
            assert padded == tokenizer.frame(ids, 32)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.pad,
    )
    assert theirs.model_max_length == 32
    assert len(theirs) == len(tokenizer)


def test_start_and_end_come_last_and_nothing_is_unknown(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (len(tokenizer) - 2, len(tokenizer) - 1, len(tokenizer) - 1)
    for text in OTHER:
        assert tokenizer.eos not in tokenizer.encode(text)


def test_the_order_of_the_words_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shuffled = list(words())
    random.Random(1).shuffle(shuffled)
    tokenizer.save(tmp_path / "a")
    build_tokenizer([*shuffled, *shuffled[:9]], max_length=32).save(tmp_path / "b")
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = Tokenizer.from_folder(tmp_path / "b")
    assert all(again.encode(text) == tokenizer.encode(text) for text in OTHER)


def test_no_room_between_start_and_end() -> None:
    with pytest.raises(ValueError, match="max_length=2 leaves no room"):
        build_tokenizer(["cat"], max_length=2)
