"""What only a process shows: signals, pipes, locales and what is imported."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.result import read_record

HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "huggingface_hub")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Processes started here notice SIGINT, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["--help"], ["help"], ["--version"], ["train", "--list"], ["help", "vocabulary"], ["help", "evaluate"]),
        *(["a", "--size", "1x1"], ["a", "-o", "/dev/null"], ["train", "a"], ["vocabulary", "-m", "a"]),
    ],
)
def test_answers_without_heavy_imports(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        f"import sys; from pipelines.cli import main; status = main({arguments!r});"
        f"print([m for m in {HEAVY} if m in sys.modules], status, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1] == ("[] 2" if "a" in arguments else "[] 0")
    assert bool(ran.stdout) == ("a" not in arguments)


def test_version_names_torch(process: Callable[..., Any]) -> None:
    from importlib.metadata import version

    ran = process("--version")
    assert ran.status == 0
    assert ran.out.startswith("ldm-pipelines ")
    assert f"torch {version('torch')}" in ran.out
    assert ran.out.count("\n") == 1


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_interrupt_while_denoising(
    start: Callable[..., Any], tiny_sd_folder: Path, tmp_path: Path, delay: float
) -> None:
    child = start("a cat", "-m", str(tiny_sd_folder), "--steps", "900", "--device", "cpu", "-o", "new/out.png")
    assert child.stderr.readline().startswith(b"seed ")  # the model is loaded, the steps begin
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, b"")
    assert err.decode() == "ldm: interrupted; nothing unfinished was kept\n"
    assert list(tmp_path.iterdir()) == []


SWALLOWED = """
import ctypes, signal, sys
from pipelines import TextToImagePipeline
from pipelines.cli import main

def from_pretrained(*_, **__):
    try:
        {act}
    except BaseException:
        {instead}

TextToImagePipeline.from_pretrained = from_pretrained
sys.exit(main(["a", "cat", "-m", "model"]))
"""


@pytest.mark.parametrize("instead", ["pass", "raise ImportError('half a module')"])
def test_interrupt_that_a_library_swallows(environment: dict[str, str], tmp_path: Path, instead: str) -> None:
    code = SWALLOWED.format(act="signal.raise_signal(signal.SIGINT)", instead=instead)
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (130, "ldm: interrupted; nothing unfinished was kept\n")


def test_interrupt_in_code_that_an_extension_runs(environment: dict[str, str], tmp_path: Path) -> None:
    act = "ctypes.pythonapi.PyRun_SimpleString(b'import signal; signal.raise_signal(signal.SIGINT)')"
    (tmp_path / "pressed.py").write_text(SWALLOWED.format(act=act, instead="raise"))
    ran = subprocess.run([sys.executable, "-m", "pressed"], env=environment, cwd=tmp_path, capture_output=True)
    assert ran.returncode == 130


def test_closed_output_keeps_the_picture(start: Callable[..., Any], tiny_sd_folder: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    line = ("a cat", "-m", str(tiny_sd_folder), "--steps", "1", "--device", "cpu", "--seed", "1", "-n", "2")
    child = start(*line, stdout=write)
    os.close(write)
    err = child.communicate(timeout=120)[1]
    assert (child.returncode, err) == (141, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a-cat-1.png"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_into_a_closed_pipe(start: Callable[..., Any], environment: dict[str, str], unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    child = start("--help", stdout=write, env={**environment, "PYTHONUNBUFFERED": unbuffered})
    os.close(write)
    err = child.communicate(timeout=60)[1]
    assert (child.returncode, err) == (141, b"")


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_c_locale(
    start: Callable[..., Any], tiny_sd_folder: Path, tmp_path: Path, environment: dict[str, str], utf8: str
) -> None:
    locale = {**environment, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8}
    options = ("--negative", "häßlich", "-m", str(tiny_sd_folder), "--steps", "1", "--device", "cpu", "--seed", "1")
    line = ("eine Bärin 🍌", *options)
    child = start(*line, env=locale)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    (path,) = tmp_path.iterdir()
    assert out == os.fsencode(path.name) + b"\n"
    assert path.name == ("eine-bärin-1.png" if utf8 == "1" else "eine-brin-1.png")
    record = read_record(path)
    assert (record["prompt"], record["negative_prompt"]) == ("eine Bärin 🍌", "häßlich")


def test_progress_only_on_a_terminal(start: Callable[..., Any], tiny_sd_folder: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    line = ("a cat", "-m", str(tiny_sd_folder), "--steps", "3", "--device", "cpu", "--seed", "1")
    for extra, shown in (((), True), (("--no-progress",), False)):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        child = start(*line, *extra, stderr=theirs)
        os.close(theirs)
        child.communicate(timeout=120)
        seen = read_all(ours)
        assert (b"0/3" in seen) == shown, seen


def read_all(terminal: int) -> bytes:
    seen = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            piece = b""
        if not piece:
            os.close(terminal)
            return seen
        seen += piece
