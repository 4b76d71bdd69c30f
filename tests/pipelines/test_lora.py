"""LoRAs in a pipeline and on the command line, and what diffusers and peft make of the same files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines import TextToImagePipeline
from pipelines.cli import main
from pipelines.result import read_record

pytest.importorskip("peft")

CALL: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "np"}


def parts(pipe: TextToImagePipeline) -> dict[str, nn.Module]:
    encoder: Any = pipe.text_encoder
    if hasattr(encoder, "first"):
        return {"unet": pipe.unet, "text_encoder": encoder.first.model, "text_encoder_2": encoder.second.model}
    return {"unet": pipe.unet, "text_encoder": encoder.model}


def kohya(pipe: TextToImagePipeline, seed: int = 0) -> dict[str, Tensor]:
    """A LoRA for every attention and every convolution's neighbour, ranks and alphas mixed, strong enough to see."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    two = "text_encoder_2" in parts(pipe)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if two else "lora_te", "text_encoder_2": "lora_te2"}
    for part, network in parts(pipe).items():
        chosen = [
            (path, m)
            for path, m in network.named_modules()
            if path.endswith(("to_q", "to_v", "conv1", "q_proj", "fc1"))
        ]
        for i, (path, module) in enumerate(chosen):
            weight, rank = module.weight, 1 + i % 3
            assert isinstance(weight, Tensor)
            name = f"{prefixes[part]}_{path.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator)
            up = torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=generator)
            tensors[f"{name}.lora_up.weight"] = up * 0.3 / weight[0].numel() ** 0.5
            tensors[f"{name}.alpha"] = torch.tensor((0.5, 2.0, 4.0)[i % 3])
    return tensors


@pytest.fixture(params=["sd1", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def draw(pipe: Any) -> np.ndarray:
    return np.asarray(pipe("a cat", generator=torch.Generator().manual_seed(3), **CALL).images)


def test_diffusers_draws_the_same_picture_with_the_file_we_write(
    family: str, pairs: Callable[[str], Any], ours: Callable[[str], TextToImagePipeline], tmp_path: Path
) -> None:
    pipe, theirs = ours(family), pairs(family).theirs
    before = draw(pipe)
    save_file(kohya(pipe), tmp_path / "style.safetensors")
    pipe.load_lora(tmp_path / "style.safetensors")
    wanted = draw(pipe)
    file = pipe.save_lora(tmp_path / "peft.safetensors")
    pipe.unload_lora()
    assert np.abs(wanted - before).mean() > 0.01
    theirs.load_lora_weights(str(file), adapter_name="style")
    try:
        np.testing.assert_allclose(draw(theirs), wanted, atol=2e-4)
        check_what_diffusers_saves(theirs, pipe, wanted, tmp_path)
    finally:
        theirs.unload_lora_weights()
    np.testing.assert_array_equal(draw(pipe), before)


def check_what_diffusers_saves(theirs: Any, pipe: TextToImagePipeline, wanted: np.ndarray, folder: Path) -> None:
    """What diffusers saves of an adapter, with the alphas in its metadata, is read back here."""
    from peft import get_peft_model_state_dict

    layers, settings = {}, {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if (network := getattr(theirs, part, None)) is not None:
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(network, adapter_name="style")
            settings[f"{part}_lora_adapter_metadata"] = network.peft_config["style"].to_dict()
    theirs.save_lora_weights(folder / "theirs", **layers, **settings)
    pipe.load_lora(folder / "theirs", "theirs")
    np.testing.assert_allclose(draw(pipe), wanted, atol=2e-4)
    pipe.unload_lora()


def test_names_of_diffusers(ours: Callable[[str], TextToImagePipeline], tmp_path: Path) -> None:
    pipe = ours("sd1")
    for seed, name in enumerate(("one", "two")):
        save_file(kohya(pipe, seed), tmp_path / f"{name}.safetensors")
        pipe.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["two"], [0.5])
    assert pipe.loras == {"one": 0.0, "two": 0.5}
    pipe.set_adapters(["one", "two"])
    assert pipe.loras == {"one": 1.0, "two": 1.0}
    pipe.delete_adapters("one")
    assert pipe.loras == {"two": 1.0}
    with pytest.raises(ValueError, match="2 weights"):
        pipe.set_adapters("two", [1, 2])
    pipe.unload_lora_weights()
    assert pipe.loras == {}


def test_records_name_the_loras_and_the_model_without_them(
    ours: Callable[[str], TextToImagePipeline], tmp_path: Path
) -> None:
    pipe = ours("sd1")
    base = pipe("a cat", seed=1, num_inference_steps=1).records[0]
    save_file(kohya(pipe) | {"strange.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    with pytest.warns(UserWarning, match=r"1 of \d+ keys fit nothing here and were left out: strange.weight") as caught:
        pipe.load_lora(tmp_path / "style.safetensors", scale=0.5)
    assert caught[0].filename == __file__
    record = pipe("a cat", seed=1, num_inference_steps=1).records[0]
    pipe.unload_lora()
    digest = hashlib.sha256((tmp_path / "style.safetensors").read_bytes()).hexdigest()
    assert record == {**base, "loras": [{"name": "style", "scale": 0.5, "sha256": digest}]}


def test_halving_a_pipeline_with_a_lora(pairs: Callable[[str], Any], tmp_path: Path) -> None:
    late = TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu")
    early = TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu", dtype="bfloat16")
    save_file(kohya(late), tmp_path / "style.safetensors")
    for pipe in (late, early):
        pipe.load_lora(tmp_path / "style.safetensors")
    late.to(torch.bfloat16)
    for one, two in zip(late.unet.parameters(), early.unet.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_command_line(
    ours: Callable[[str], TextToImagePipeline],
    pairs: Callable[[str], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe = ours("sd1")
    files = [tmp_path / "one.safetensors", tmp_path / "two:1.safetensors"]
    for seed, file in enumerate(files):
        save_file(kohya(pipe, seed), file)
    words = ["a", "cat", "-m", str(pairs("sd1").folder), "--steps", "2", "--seed", "5", "-o", str(tmp_path / "out.png")]
    assert main([*words, "--lora", f"{files[0]}:0.5", "--lora", str(files[1]), "--device", "cpu"]) == 0
    pipe.load_lora(files[0], scale=0.5)
    pipe.load_lora(files[1])
    wanted = pipe("a cat", seed=5, num_inference_steps=2)
    pipe.unload_lora()
    assert read_record(tmp_path / "out.png")["loras"] == wanted.records[0]["loras"]
    assert [lora["scale"] for lora in wanted.records[0]["loras"]] == [0.5, 1.0]
    from PIL import Image

    with Image.open(tmp_path / "out.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(wanted.images[0]))
    capsys.readouterr()
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for bad in ("bad.safetensors", "none.safetensors:0.5"):
        assert main([*words, "--lora", str(tmp_path / bad), "--device", "cpu"]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert str(tmp_path / bad.split(":")[0]) in told.err
        assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("style.safetensors", ("style.safetensors", 1.0)),
        ("style.safetensors:0.8", ("style.safetensors", 0.8)),
        ("style.safetensors:-1", ("style.safetensors", -1.0)),
        ("C:\\style.safetensors", ("C:\\style.safetensors", 1.0)),
        (":2", (":2", 1.0)),
    ],
)
def test_files_and_scales_in_words(text: str, meaning: tuple[str, float]) -> None:
    from pipelines.cli.values import scaled

    assert scaled(text) == meaning


def test_saving_one_of_two_needs_a_name(ours: Callable[[str], TextToImagePipeline], tmp_path: Path) -> None:
    pipe = ours("sd1")
    save_file(kohya(pipe), tmp_path / "a.safetensors")
    for name in ("one", "two"):
        pipe.load_lora(tmp_path / "a.safetensors", name)
    with pytest.raises(ValueError, match=r"2 LoRAs are loaded \(one, two\): give the name of one"):
        pipe.save_lora(tmp_path / "b.safetensors")
    file = pipe.save_lora(tmp_path / "b.safetensors", "two", layout="kohya")
    pipe.unload_lora()
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["ss_network_dim"].replace("Dynamic", "0")) == 0
    assert load_file(file).keys() == kohya(pipe).keys()


def test_a_lora_of_the_hub(pipe: TextToImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a repository on the hub holds, by its name and by the name of a file in it."""
    import huggingface_hub

    (tmp_path / "cache").mkdir()
    for name in ("pytorch_lora_weights.safetensors", "other.safetensors"):
        save_file(kohya(pipe), tmp_path / "cache" / name)
    asked: list[Any] = []

    def snapshot_download(repo: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append((repo, allow_patterns[0], options["revision"]))
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert pipe.load_lora("some/style", revision="v1") == "pytorch_lora_weights"
    pipe.load_lora_weights("some/style", weight_name="other.safetensors", adapter_name="two")
    assert list(pipe.loras) == ["pytorch_lora_weights", "two"]
    first, second = ("some/style", "pytorch_lora_weights.safetensors", "v1"), ("some/style", "other.safetensors", None)
    assert asked == [first, second]
    pipe.unload_lora()
