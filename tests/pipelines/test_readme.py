"""The README's examples, run as they stand on a tiny model."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
STYLE = {"unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(16, 1, 1, 1)}
SHELL = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def with_paths(text: str, folder: Path, model: Path) -> str:
    """An example with what its paths stand for, a tiny model and a LoRA for it."""
    if not (folder / "style.safetensors").exists():
        save_file(STYLE, folder / "style.safetensors")
    return text.replace("path/to/model", str(model)).replace("path/to/style", str(folder / "style"))


def test_python_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Callable[[str], Any]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in PYTHON:
        exec(with_paths(block, tmp_path, pairs("sd1").folder), names)
    assert {path.name for path in tmp_path.iterdir()} == {"cat.png", "preview.png", "style.safetensors"}
    assert names["result"].records[0]["seed"] == 7


def test_shell_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    from pipelines.cli import main

    monkeypatch.chdir(tmp_path)
    lines = [line for block in SHELL for line in block.strip().splitlines()]
    assert len(lines) >= 4
    for line in lines:
        command, *arguments = shlex.split(with_paths(line, tmp_path, pairs("sd1").folder))
        assert command == "ldm"
        assert main(arguments) == 0, line
    assert (tmp_path / "out.png").exists()
    assert {path.name for path in (tmp_path / "owls").iterdir()} == {f"{seed}.png" for seed in (7, 8, 9, 10)}
    assert len(list(tmp_path.glob("*.png"))) == 1 + 1 + 1 + 1 + 4
