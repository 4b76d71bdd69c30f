"""`ldm vocabulary`, of a model that says what it knows and of one that does not."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint import hub
from ldm.data.emoji_scenes.world import FULL
from ldm.vocabulary import Vocabulary, of_world, write_vocabulary

Command = Callable[..., Any]


def folder_of(vocabulary: Vocabulary | None, folder: Path) -> Path:
    """What the command reads of a model's folder; the networks are none of its business."""
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    if vocabulary is not None:
        write_vocabulary(vocabulary, folder)
    return folder


def test_lists_everything_and_ends_with_examples(ldm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    vocabulary = of_world(FULL)
    ran = ldm("vocabulary", "--model", str(folder_of(vocabulary, tmp_path / "own")))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("What own can draw")
    for kind, nouns in vocabulary.nouns.items():
        section = ran.out.split(f"\n{kind} ({len(nouns)})\n")[1].split("\n\n")[0]
        cells = [f"{noun} ({', '.join(names)})" if names else noun for noun, names in nouns.items()]
        assert sorted(filter(None, re.split(r" {2,}|\n", section))) == sorted(cells)
    for word in (*vocabulary.colours, *vocabulary.places, *vocabulary.relations, *vocabulary.styles):
        assert word in ran.out.split("colours  ")[1]
    assert max(map(len, ran.out.splitlines())) <= 72
    examples = ran.out.split("\nexamples\n")[1].splitlines()
    assert examples[0] == '  ldm "a cat holding a banana"'
    assert examples[-1].endswith("""holding a sign that says "HELLO"'""")


def test_columns_read_downwards() -> None:
    from pipelines.cli.vocabulary import columns

    assert list(columns(["a", "b", "c", "d", "eee"], 17)) == ["  a    c    eee", "  b    d"]
    assert list(columns(["a" * 30, "b"], 20)) == ["  " + "a" * 30, "  b"]


def test_json_is_the_vocabulary(ldm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = of_world(FULL, {"guidance_scale": 4.0})
    folder = folder_of(vocabulary, tmp_path / "own")
    monkeypatch.setattr(hub, "_embedded_folder", lambda: folder)
    ran = ldm("vocabulary", "--json")
    assert json.loads(ran.out) == json.loads(json.dumps(asdict(vocabulary)))
    assert ldm("vocabulary", "--json", "-m", str(folder)).out == ran.out


def test_models_without_one(ldm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(None, tmp_path / "any")
    ran = ldm("vocabulary", "-m", str(folder))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"ldm: {folder} does not say what it can draw")
    assert "no folder missing" in ldm("vocabulary", "-m", "missing").err
    monkeypatch.setattr(hub, "_embedded_folder", lambda: tmp_path / "left out")
    ran = ldm("vocabulary")
    assert ran.status == 2
    assert "no embedded one" in ran.err
