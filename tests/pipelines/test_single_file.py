"""A single file through the door that everybody uses, in Python and in a shell."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipelines import TextToImagePipeline
from tests.ldm.checkpoint.originals import UNET, VAE, assert_same, sd2_file, tiny, write


def test_one_door(tmp_path: Path) -> None:
    source, state = tiny("sd1")
    file = write({k: v for k, v in state.items() if VAE not in k}, tmp_path / "model.safetensors")
    pipe = TextToImagePipeline.from_single_file(str(file), vae=source.autoencoder, device="cpu", config="any")
    assert_same(pipe.model, source)
    with pytest.raises(ValueError, match="has no variants"):
        TextToImagePipeline.from_pretrained(file, variant="fp16")
    with pytest.raises(ValueError, match="is an address: download the file"):
        TextToImagePipeline.from_pretrained("https://huggingface.co/org/name/blob/main/model.safetensors")
    with pytest.raises(ValueError, match="name the file itself"):
        TextToImagePipeline.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*model\.safetensors"):
        TextToImagePipeline.from_pretrained(tmp_path / "modle.safetensors")


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "lora": ({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 2)}, "it is a LoRA: load a model first"),
    "embedding": ({"emb_params": torch.ones(2, 64)}, "it is a textual inversion"),
    "vae": ({"decoder.conv_in.weight": torch.ones(4, 4, 3, 3)}, "it is an autoencoder (VAE) alone"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_command_line_refuses(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and one line, no traceback."""
    from pipelines.cli import main

    state, text = WRONG[kind]
    file = write(state, tmp_path / "wrong.safetensors")
    assert main(["a cat", "--model", str(file), "-o", str(tmp_path / "a.png"), "--device", "cpu"]) == 2
    error = capfd.readouterr().err
    assert f"{file}: {text}" in error
    assert len(error.splitlines()) == 1


def test_command_line_draws(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from pipelines.cli import main

    file = sd2_file(tmp_path / "model.safetensors", -2.0)
    out = tmp_path / "a.png"
    options = ["-o", str(out), "--steps", "2", "--size", "64x64", "--device", "cpu", "--dtype", "float32"]
    assert main(["a cat", "--model", str(file), *options]) == 0
    assert out.exists()
    assert "taken for v_prediction" in caplog.text
    caplog.clear()
    out.unlink()
    assert main(["a cat", "--model", str(file), *options, "--prediction-type", "epsilon"]) == 0
    assert "taken for" not in caplog.text


def test_command_line_takes_missing_parts_from_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli import main

    state = tiny("sd1")[1]
    whole = write(state, tmp_path / "whole.safetensors")
    unet = write({k: v for k, v in state.items() if k.startswith(UNET)}, tmp_path / "unet.safetensors")
    options = ["--steps", "2", "--size", "64x64", "--seed", "1", "--device", "cpu", "--dtype", "float32", "-q"]
    assert main(["a cat", "--model", str(unet), *options]) == 2
    assert "holds no autoencoder and no text encoder: pass" in capfd.readouterr().err
    parts = ["--vae", str(whole), "--text-encoder", str(whole)]
    assert main(["a cat", "--model", str(unet), *parts, *options, "-o", str(tmp_path / "parts.png")]) == 0
    assert main(["a cat", "--model", str(whole), *options, "-o", str(tmp_path / "whole.png")]) == 0
    assert Image.open(tmp_path / "parts.png").tobytes() == Image.open(tmp_path / "whole.png").tobytes()
    capfd.readouterr()
    assert main(["a cat", "--model", str(unet), "--vae", "no.safetensors", *options]) == 2
    assert "no.safetensors" in capfd.readouterr().err
