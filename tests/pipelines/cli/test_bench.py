"""`ldm bench`: what it prints, that it leaves nothing changed, and that every number is of something."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ldm.plan import Speed

Command = Callable[..., Any]
NUMBERS = ("load", "text", "step", "decode", "peak memory")


@pytest.fixture
def folder(pairs: Callable[[str], Any]) -> Path:
    path: Path = pairs("sd1").folder
    return path


def test_json_has_every_number(ldm: Command, folder: Path) -> None:
    ran = ldm("bench", "-m", str(folder), "--rounds", "1", "--steps", "3", "--json", "--device", "cpu")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert all(found[name] > 0 for name in NUMBERS)
    assert (found["model"], found["device"], found["dtype"]) == (str(folder), "cpu", "float32")
    assert found["steps"] == 50
    assert found["without"] == {}


def test_ablation_names_every_switch_that_is_on(ldm: Command, folder: Path) -> None:
    ran = ldm("bench", "-m", str(folder), "--rounds", "1", "--steps", "2", "--ablate", "--size", "64x128")
    assert ran.status == 0
    rows = dict(line.rsplit(maxsplit=1) for line in ran.out.split("without\n")[1].splitlines())
    assert [name.strip() for name in rows] == [field.name for field in fields(Speed) if getattr(Speed(), field.name)]
    assert all(float(ratio) > 0 for ratio in rows.values())
    assert " s with 50 steps" in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "missing"), "missing"),
        (("--rounds", "0"), "--rounds"),
        (("--steps", "1"), "--steps"),
        (("--size", "65x64"), "multiples of 8"),
        (("--dtype", "int8"), "dtype"),
        (("--device", "nowhere"), "no device"),
    ],
)
def test_bad_input(ldm: Command, arguments: tuple[str, ...], said: str) -> None:
    ran = ldm("bench", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
