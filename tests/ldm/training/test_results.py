"""What a run leaves: other programs draw from it what the trained model draws, and nothing false passes as proven."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs import presets
from configs.finetuning import LoraConfig, ResultConfig
from ldm.checkpoint.embedding import load_embedding, unload_embedding
from ldm.checkpoint.meta import on_meta
from ldm.lora.layers import LoraLayer, attach, detach
from ldm.lora.names import parts_of
from ldm.model import LatentDiffusion
from ldm.training import results
from ldm.training.results import (
    WrongResult,
    prove_lora,
    write_lora,
    write_words,
)
from pipelines import TextToImagePipeline
from tests.ldm.checkpoint.originals import tiny
from tests.pipelines.conftest import MAKERS
from text_encoder.words import forget_words, learn_words
from unet import UNet

peft = pytest.importorskip("peft")

CALL: dict[str, Any] = {
    "num_inference_steps": 2,
    "guidance_scale": 5.0,
    "height": 64,
    "width": 64,
    "output_type": "latent",
}
EVERY = ("attention", "feedforward", "convolutions")
CONFIGS = {
    "attention": LoraConfig(rank=3),
    "all": LoraConfig(rank=4, alpha=2.0, targets=EVERY),
    "dora": LoraConfig(rank=3, alpha=6.0, targets=EVERY, dora=True),
}
TOLD = ResultConfig(precision="fp32", title="A style", author="A. Person", licence="cc0-1.0")
FP32: dict[str, Any] = {"dtype": torch.float32, "result": TOLD}


@dataclass
class Both:
    """The same tiny model in diffusers and here, and what it draws."""

    theirs: Any
    ours: TextToImagePipeline
    plain: np.ndarray

    @property
    def model(self) -> LatentDiffusion:
        return self.ours.model


def draw(pipe: Any, prompt: str = "a <moon> cat") -> np.ndarray:
    return np.asarray(pipe(prompt, generator=torch.Generator().manual_seed(3), **CALL).images)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    made: dict[str, Both] = {}

    def get(family: str) -> Both:
        if family not in made:
            pair = MAKERS[family](tmp_path_factory.mktemp(family))
            ours = TextToImagePipeline.from_pretrained(pair.folder, device="cpu")
            ours.set_progress_bar_config(disable=True)
            made[family] = Both(pair.theirs, ours, draw(ours))
        return made[family]

    return get


@pytest.fixture
def sd1(both: Callable[[str], Both]) -> Iterator[Both]:
    yield both("sd1")
    detach(both("sd1").model)


def trained(layers: dict[str, LoraLayer], size: float = 0.1) -> dict[str, LoraLayer]:
    """As if they had learned."""
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        layer.up.data = size * torch.randn(layer.up.shape, generator=generator)
        if layer.magnitude is not None:
            layer.magnitude.data *= 1 + 0.3 * torch.randn(layer.magnitude.shape, generator=generator)
    return layers


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


# LoRAs


@pytest.mark.parametrize(("family", "kind"), [("sd1", "all"), ("sd1", "dora"), ("sdxl", "all")])
def test_everybody_draws_the_same_from_the_files(
    kind: str, family: str, both: Callable[[str], Both], tmp_path: Path
) -> None:
    """The live layers, our pipeline with either file, diffusers' with either; with the second also without metadata."""
    pair = both(family)
    layers = trained(attach(pair.model, CONFIGS[kind], unet=True, text=True, seed=1))
    wanted = draw(pair.ours)
    files = write_lora(pair.model, layers, tmp_path, "style", **FP32)
    detach(pair.model)
    assert [file.name for file in files] == ["style.safetensors", "style-diffusers.safetensors"]
    assert np.abs(wanted - pair.plain).max() > 0.02
    for file in files:
        pair.ours.load_lora(file)
        np.testing.assert_allclose(draw(pair.ours), wanted, atol=1e-4)
        pair.ours.unload_lora()
    np.testing.assert_array_equal(draw(pair.ours), pair.plain)
    save_file(load_file(files[1]), tmp_path / "bare.safetensors")
    # of DoRA in kohya's keys diffusers leaves the magnitudes out, and without metadata it takes it for a LoRA
    for file in files[1:] if kind == "dora" else [*files, tmp_path / "bare.safetensors"]:
        pair.theirs.load_lora_weights(str(file))
        try:
            np.testing.assert_allclose(draw(pair.theirs), wanted, atol=1e-4)
        finally:
            pair.theirs.unload_lora_weights()


@pytest.mark.parametrize("kind", ["all", "dora"])
def test_peft_reads_the_second_file(kind: str, sd1: Both, tmp_path: Path) -> None:
    """By the settings in its metadata, into our own networks."""
    layers = trained(attach(sd1.model, CONFIGS[kind], unet=True, text=True, seed=1))
    wanted = outputs(sd1.model)
    _, file = write_lora(sd1.model, layers, tmp_path, "style", **FP32)
    detach(sd1.model)
    settings, tensors = json.loads(metadata(file)["lora_adapter_metadata"]), load_file(file)
    for part, network in parts_of(sd1.model).items():
        config = {key.removeprefix(f"{part}."): v for key, v in settings.items() if key.startswith(f"{part}.")}
        assert config["lora_alpha"] == config["r"] == CONFIGS[kind].rank
        peft.inject_adapter_in_model(peft.LoraConfig(**config), network)
        own = {key.removeprefix(f"{part}."): v for key, v in tensors.items() if key.startswith(f"{part}.")}
        assert not peft.set_peft_model_state_dict(network, own).unexpected_keys
    try:
        torch.testing.assert_close(outputs(sd1.model), wanted, rtol=1e-4, atol=1e-4)
    finally:
        for network in parts_of(sd1.model).values():
            restore(network)
    assert (outputs(sd1.model)[0] - wanted[0]).abs().max() > 0.01


@torch.no_grad()
def outputs(model: LatentDiffusion) -> list[Tensor]:
    """Of the networks themselves."""
    text = model.text_encoder(["a cat"]).tokens
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return [model.unet(x, torch.tensor([500]), text), text]


def restore(network: nn.Module) -> None:
    for path, layer in list(network.named_modules()):
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            network.set_submodule(path, layer.get_base_layer())
    del network.peft_config


def test_half_precision(sd1: Both, tmp_path: Path) -> None:
    dtype = torch.float16
    layers = trained(attach(sd1.model, CONFIGS["dora"], unet=True, text=True, seed=1))
    wanted = draw(sd1.ours)
    files = write_lora(sd1.model, layers, tmp_path, "style", dtype=dtype, result=TOLD)
    detach(sd1.model)
    for file in files:
        stored = {key: tensor.dtype for key, tensor in load_file(file).items()}
        magnitudes = {key for key in stored if "dora_scale" in key or "magnitude" in key}
        assert all(found == (torch.float32 if key in magnitudes else dtype) for key, found in stored.items())
        sd1.ours.load_lora(file)
        np.testing.assert_allclose(draw(sd1.ours), wanted, atol=0.02)
        sd1.ours.unload_lora()


def test_what_files_say_of_themselves(tmp_path: Path) -> None:
    model = tiny("sd2")[0]
    layers = trained(attach(model, CONFIGS["all"], unet=True, text=False, seed=1))
    kohya, diffusers = write_lora(model, layers, tmp_path, "style", trigger="sks", **FP32)
    detach(model)
    said = metadata(kohya)
    given = {
        "modelspec.title": "A style",
        "modelspec.author": "A. Person",
        "modelspec.license": "cc0-1.0",
        "modelspec.trigger_phrase": "sks",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "latent-diffusion-64/lora",  # as narrow as no published model
        "modelspec.implementation": "https://github.com/Stability-AI/stablediffusion",
    }
    trained_as = {
        "ss_v2": "True",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_network_args": '{"conv_dim": "4", "conv_alpha": "2"}',
        "ss_base_model_version": "unknown",
    }
    assert said.pop("modelspec.hash_sha256").startswith("0x")
    assert said == {"format": "pt", **given, **trained_as}
    said = metadata(diffusers)
    assert given.items() <= said.items()
    assert {key for key in said if key.startswith("ss_")} == set()
    assert str(tmp_path) not in json.dumps(said)


@pytest.mark.parametrize(
    ("family", "kind"), [("sd1", "stable-diffusion-v1"), ("sd2", "stable-diffusion-v2-512"), ("sdxl", "-xl-v1-base")]
)
def test_the_architecture_of_published_families(family: str, kind: str) -> None:
    unet = {"sd1": presets.UNET_SD15, "sd2": presets.UNET_SD21_BASE, "sdxl": presets.UNET_SDXL}[family]
    model = replace(tiny(family)[0], unet=on_meta("", UNet, unet))
    assert results._described(model, "/lora", "a", TOLD, "")["modelspec.architecture"].endswith(f"{kind}/lora")


def spoilt(file: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    said, tensors = metadata(file), load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=said)


def test_what_is_not_proven(sd1: Both, tmp_path: Path) -> None:
    config = replace(CONFIGS["all"], targets=("attention",))
    layers = trained(attach(sd1.model, config, unet=True, text=False, seed=1))
    own = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

    def proven(which: int, change: Callable[[dict[str, Tensor]], None]) -> None:
        paths = write_lora(sd1.model, layers, tmp_path, "style", **FP32)
        spoilt(paths[which], change)
        prove_lora(sd1.model, layers, paths)

    proven(0, lambda tensors: None)
    with pytest.raises(WrongResult, match=rf"style\.safetensors: {own} changes weights otherwise .* by .* of"):
        proven(0, lambda tensors: tensors[f"{key}.alpha"].mul_(2))  # the commonest mistake
    with pytest.raises(WrongResult, match=rf"style-diffusers\.safetensors: {own} changes weights otherwise"):
        proven(1, lambda tensors: tensors[f"{own}.lora_B.weight"][0].add_(1e-3))
    with pytest.raises(WrongResult, match=rf"{own} is not what was trained"):
        proven(1, lambda tensors: [tensors.pop(f"{own}.lora_{side}.weight") for side in "AB"])  # type: ignore[arg-type]
    with pytest.raises(WrongResult, match=r"strange\.weight is not what was trained"):
        proven(0, lambda tensors: tensors.update({"strange.weight": torch.zeros(1)}))


def test_changes_that_half_precision_loses(sd1: Both, tmp_path: Path) -> None:
    layers = trained(attach(sd1.model, CONFIGS["attention"], unet=True, text=False, seed=1), size=1e-8)
    with pytest.raises(WrongResult, match=r'so little \(.* in all\) that torch.float16 loses it: .*precision = "fp32"'):
        write_lora(sd1.model, layers, tmp_path, "style", dtype=torch.float16, result=TOLD)
    write_lora(sd1.model, layers, tmp_path, "style", **FP32)
    for layer in layers.values():  # a run of no steps
        layer.up.data.zero_()
    write_lora(sd1.model, layers, tmp_path, "style", dtype=torch.float16, result=TOLD)


# words


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_words(family: str, both: Callable[[str], Both], tmp_path: Path) -> None:
    pair = both(family)
    for words in learn_words(pair.model.text_encoder, "<moon>", start="cat", vectors=2):
        words.rows.data.add_(torch.randn(words.rows.shape, generator=torch.Generator().manual_seed(4)))
    wanted = draw(pair.ours)
    (file,) = write_words(pair.model, "<moon>", tmp_path, "mine", **FP32)
    forget_words(pair.model.text_encoder)
    said = metadata(file)
    assert (said["name"], said["modelspec.trigger_phrase"]) == ("<moon>", "<moon>")
    assert said["modelspec.architecture"].endswith("/textual-inversion")
    assert list(load_file(file)) == (["clip_g", "clip_l"] if family == "sdxl" else ["<moon>"])
    assert np.abs(wanted - pair.plain).max() > 0.02
    load_embedding(pair.model.text_encoder, file, "<moon>")
    np.testing.assert_array_equal(draw(pair.ours), wanted)
    unload_embedding(pair.model.text_encoder)
    if family == "sd1":
        pair.theirs.load_textual_inversion(str(file))
        try:
            np.testing.assert_allclose(draw(pair.theirs), wanted, atol=1e-4)
        finally:
            pair.theirs.unload_textual_inversion()
