"""The README's examples, run as they stand on a tiny model."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
STYLE = {"unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(16, 1, 1, 1)}
SHELL = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def with_paths(tmp_path: Path, pairs: Callable[[str], Any], nets: Callable[..., Any]) -> Callable[[str], str]:
    """An example with what its paths stand for, a tiny model, and a LoRA, a ControlNet and a control image for it."""
    save_file(STYLE, tmp_path / "style.safetensors")
    shutil.copytree(nets("sd1")[1], tmp_path / "edges")
    Image.new("RGB", (64, 72), "white").save(tmp_path / "edges.png")
    places = {"model": pairs("sd1").folder, "style": tmp_path / "style", "edges": tmp_path / "edges"}
    return lambda text: re.sub(f"path/to/({'|'.join(places)})", lambda match: str(places[match[1]]), text)


def test_python_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_paths: Callable[[str], str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    before = set(tmp_path.iterdir())
    for block in PYTHON:
        exec(with_paths(block), names)
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"cat.png", "preview.png"}
    assert names["result"].records[0]["seed"] == 7


def test_shell_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_paths: Callable[[str], str]) -> None:
    import shlex

    from pipelines.cli import main

    monkeypatch.chdir(tmp_path)
    lines = [line for block in SHELL for line in block.strip().splitlines()]
    assert len(lines) >= 4
    for line in lines:
        command, *arguments = shlex.split(with_paths(line))
        assert command == "ldm"
        assert main(arguments) == 0, line
    assert (tmp_path / "out.png").exists()
    assert {path.name for path in (tmp_path / "owls").iterdir()} == {f"{seed}.png" for seed in (7, 8, 9, 10)}
    assert len(list(tmp_path.glob("*.png"))) == 1 + 1 + 1 + 1 + 1 + 4 + 1  # the last is the control image
