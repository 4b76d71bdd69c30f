"""Weights in 8 bits through the whole pipeline and on the command line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines import TextToImagePipeline
from pipelines.cli import main
from pipelines.result import read_record
from tests.eight_bits import torchao as torchao

SMALL: dict[str, Any] = {"num_inference_steps": 4, "height": 64, "width": 72, "seed": 5}


@pytest.fixture
def folder(pairs: Callable[[str], Any]) -> str:
    return str(pairs("sd1").folder)


def load(folder: str, **options: Any) -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained(folder, device="cpu", **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: TextToImagePipeline) -> Tensor:
    images: Tensor = pipe("a cat", output_type="pt", **SMALL).images
    return images


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_picture_and_its_record_know(torchao: str, pairs: Callable[[str], Any], family: str) -> None:
    folder = str(pairs(family).folder)
    exact, pipe = load(folder), load(folder, quantize="int8")
    images, whole = draw(pipe), draw(exact)
    assert 1e-4 < (images - whole).abs().mean() < 0.02
    assert torch.equal(draw(pipe), images)
    record = exact("a cat", **SMALL).records[0]
    assert pipe("a cat", **SMALL).records[0] == {**record, "quantize": "int8"}
    assert "quantize" not in record
    exact.quantize("int8")
    assert torch.equal(draw(exact), images)


def test_in_half_precision(torchao: str, folder: str) -> None:
    pipe = load(folder, dtype="bfloat16", quantize="int8")
    assert pipe.dtype == torch.bfloat16
    assert (draw(pipe) - draw(load(folder, dtype="bfloat16"))).abs().mean() < 0.05


def test_what_such_a_model_does_not_do(torchao: str, folder: str, tmp_path: Path) -> None:
    pipe = load(folder, quantize="int8")
    tries: dict[str, Callable[[], Any]] = {
        "changed by a LoRA": lambda: pipe.load_lora(tmp_path / "style.safetensors"),
        "converted to torch.bfloat16": lambda: pipe.to(torch.bfloat16),
        "saved": lambda: pipe.save_pretrained(tmp_path / "model"),
    }
    before = draw(pipe)
    (tmp_path / "style.safetensors").touch()
    for use, attempt in tries.items():
        with pytest.raises(ValueError, match=rf"8 bits \(int8\) cannot be {use}: load the model without quantize"):
            attempt()
    assert torch.equal(draw(pipe.to("cpu", torch.float32)), before)
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]


def test_on_the_command_line(torchao: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", folder, "--quantize", "int8", "--device", "cpu"]
    out = tmp_path / "out.png"
    assert main(["a", "cat", *words, "--steps", "4", "--size", "72x64", "--seed", "5", "-o", str(out)]) == 0
    assert read_record(out)["quantize"] == "int8"
    capsys.readouterr()
    assert main(["bench", *words, "--rounds", "1", "--steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantize"] == "int8"
    assert main(["a", "cat", *words, "--lora", str(out)]) == 2
    assert "weights held in 8 bits (int8) cannot be changed by a LoRA" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["a", "cat"], ["bench"], ["evaluate"]])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("int4", 'quantize is "int8" or "fp8", not \'int4\''),
        ("fp8", "fp8 needs a GPU"),
        ("int8", 'pip install "ldm-pipelines[quantize]"'),
    ],
)
def test_bad_input(
    command: list[str], kind: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*command, "--quantize", kind, "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
