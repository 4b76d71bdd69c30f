"""The command as a person meets it: as a process, or in this one where that shows the same."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's, with the checkout importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Callable[..., "subprocess.Popen[bytes]"]:
    """`ldm` as a process in an empty folder."""

    def begin(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        settings = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], **{**settings, **options})

    return begin


@pytest.fixture
def process(start: Callable[..., "subprocess.Popen[bytes]"]) -> Callable[..., Ran]:
    """Runs `ldm` as a process to its end."""

    def run(*arguments: str, **options: Any) -> Ran:
        child = start(*arguments, **options)
        out, err = child.communicate(timeout=120)
        return Ran(child.returncode, (out or b"").decode(), (err or b"").decode())

    return run


@pytest.fixture
def ldm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the command here, in an empty folder: `main` without a new interpreter."""
    from pipelines.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ran:
        status = main(list(arguments))
        return Ran(status, *capfd.readouterr())

    return run
