import hashlib
import json
from importlib.resources import files

import pytest
from transformers import CLIPTokenizer

from text_encoder.tokenizer import Tokenizer, clip_vocabulary

# of the tokens in the order of their ids, joined by line feeds
VOCABULARY_SHA256 = "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"
FAMILIES = ["bare", "sd1", "sd2", "sdxl_2", "concepts"]


def assert_same(ours: Tokenizer, oracle: CLIPTokenizer, corpus: list[str]) -> None:
    assert (ours.bos, ours.eos, ours.pad) == (oracle.bos_token_id, oracle.eos_token_id, oracle.pad_token_id)
    assert len(ours) == len(oracle)
    wrong = [text for text in corpus if ours.encode(text) != oracle(text, add_special_tokens=False).input_ids]
    assert wrong == []


def framed(ours: Tokenizer, text: str) -> list[int]:
    return ours.frame(ours.encode(text)[:75], 77)


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_a_folder_as_transformers_does(family, family_folder, oracle_tokenizer, corpus):
    ours = Tokenizer.from_folder(family_folder(family))
    oracle = oracle_tokenizer(family)
    assert_same(ours, oracle, corpus)
    padded = oracle(corpus, padding="max_length", max_length=77, truncation=True).input_ids
    assert [framed(ours, text) for text in corpus] == padded


@pytest.mark.parametrize("family", FAMILIES)
def test_reads_what_transformers_saved_and_forgets_its_padding(
    family, family_folder, oracle_tokenizer, corpus, tmp_path
):
    oracle = CLIPTokenizer.from_pretrained(family_folder(family))
    oracle.backend_tokenizer.enable_truncation(12)
    oracle.backend_tokenizer.enable_padding(length=20, pad_id=5, pad_token="!")
    oracle.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["truncation"]["max_length"] == 12
    assert stored["padding"]["pad_id"] == 5
    assert not (tmp_path / "vocab.json").exists()
    ours = Tokenizer.from_folder(tmp_path)
    assert_same(ours, oracle_tokenizer(family), corpus)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unified", [True, False], ids=["tokenizer.json", "vocab.json"])
def test_transformers_reads_what_we_save(family, unified, family_folder, corpus, tmp_path):
    ours = Tokenizer.from_folder(family_folder(family))
    ours.save(tmp_path / "new")
    if not unified:
        (tmp_path / "new" / "tokenizer.json").unlink()
    saved = CLIPTokenizer.from_pretrained(tmp_path / "new")
    assert_same(ours, saved, corpus)
    assert saved.model_max_length == 77
    assert_same(Tokenizer.from_folder(tmp_path / "new"), saved, corpus)


@pytest.mark.parametrize(("pad", "family"), [("<|endoftext|>", "sd1"), ("!", "sd2"), ("!", "sdxl_2")])
def test_shipped_vocabulary_is_that_of_the_folders(pad, family, oracle_tokenizer, corpus):
    assert_same(Tokenizer.clip(pad=pad), oracle_tokenizer(family), corpus)


def test_shipped_vocabulary_is_clips():
    vocabulary, merges = clip_vocabulary()
    assert (len(vocabulary), len(merges)) == (49408, 48894)
    assert list(vocabulary.values()) == list(range(49408))
    # published examples: CLIP's ids of words that every user of it knows
    assert Tokenizer.clip().frame(Tokenizer.clip().encode("a photo of a cat"), 8) == [
        *(49406, 320, 1125, 539, 320, 2368, 49407),
        49407,
    ]
    listed = "\n".join(vocabulary).encode()
    assert hashlib.sha256(listed).hexdigest() == VOCABULARY_SHA256


def test_licence_lies_beside_the_vocabulary():
    licence = (files("text_encoder") / "clip_vocabulary" / "LICENSE").read_text()
    assert "Copyright (c) 2021 OpenAI" in licence
    assert "Copyright (c) 2012-2021 Gabriel Ilharco" in licence


def test_exclamation_mark_as_padding_matches_inside_text():
    assert Tokenizer.clip(pad="!").encode("hello!") == [3306, 0]
    assert Tokenizer.clip().encode("hello!") == [3306, 256]


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_missing_file_is_named(name, family_folder, tmp_path):
    for other in {"vocab.json", "merges.txt"} - {name}:
        (tmp_path / other).write_bytes((family_folder("bare") / other).read_bytes())
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt; give"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        Tokenizer.from_folder(tmp_path / "no_such_folder")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", b'{"a": 1'),
        ("vocab.json", b"\xff\xfe\x00"),
        ("vocab.json", b"[1, 2]"),
        ("vocab.json", b"[" * 100_000),
        ("vocab.json", b'{"a": "b"}'),
        ("vocab.json", b'{"a": -1}'),
        ("vocab.json", b'{"a": 99999999999}'),
        ("merges.txt", b"#version: 0.2\na b c\n"),
        ("merges.txt", b"\xff\xfe"),
        ("tokenizer_config.json", b"<html>"),
        ("tokenizer_config.json", b""),
        ("special_tokens_map.json", b"7"),
        ("added_tokens.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": []}}'),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}, "merges": ["a"]}}'),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}, "merges": [["a", "a", "a"]]}}'),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}, "merges": 3}}'),
    ],
)
def test_damaged_file_is_named(name, content, family_folder, tmp_path):
    for path in family_folder("bare").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*(download it again|give the folder of a CLIP tokenizer)"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("merges.txt", b"no such\n"),
        ("tokenizer_config.json", b'{"pad_token": {"text": "!"}}'),
        ("tokenizer_config.json", b'{"model_max_length": "77"}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": "y"}}'),
        ("special_tokens_map.json", b'{"bos_token": 7}'),
        ("added_tokens.json", b'{"a": "b"}'),
    ],
)
def test_files_that_do_not_fit_name_the_folder(name, content, family_folder, tmp_path):
    for path in family_folder("bare").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*download the folder again"):
        Tokenizer.from_folder(tmp_path)


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(ValueError, match="surrogate"):
        Tokenizer.clip().encode("a \ud800 cat")
