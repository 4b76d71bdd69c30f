"""Folders that diffusers wrote, in every layout it has, become the same networks here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.checkpoint import load_folder
from ldm.model import LatentDiffusion
from text_encoder import CLIPTextEncoder, PairedTextEncoder

FAMILIES = ["sd1", "sd2", "sdxl", "sdxl_refiner"]


def encoders(model: LatentDiffusion) -> dict[str, CLIPTextEncoder]:
    if isinstance(model.text_encoder, PairedTextEncoder):
        return {"text_encoder": model.text_encoder.first, "text_encoder_2": model.text_encoder.second}
    return {"text_encoder_2" if model.family == "sdxl_refiner" else "text_encoder": model.text_encoder}


def networks(model: LatentDiffusion) -> dict[str, nn.Module]:
    return {"unet": model.unet, "vae": model.autoencoder} | {part: e.model for part, e in encoders(model).items()}


def assert_same_weights(model: LatentDiffusion, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Every network holds bit by bit what diffusers and transformers read from the folder."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    for part, module in networks(model).items():
        theirs = {key.removeprefix("text_model."): value for key, value in getattr(pipe, part).state_dict().items()}
        ours = {key.removeprefix("text_model."): value for key, value in module.state_dict().items()}
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_each_family_gives_the_networks_of_diffusers(folders: dict[str, Path], family: str) -> None:
    model = load_folder(folders[family])
    assert model.family == family
    assert model.source == str(folders[family])
    assert_same_weights(model, folders[family])
    assert not any(module.training for module in networks(model).values())
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders[family])
    assert dict(model.scheduler_config) == json.loads((folders[family] / "scheduler/scheduler_config.json").read_text())
    assert model.model_index.get("force_zeros_for_empty_prompt") == pipe.config.get("force_zeros_for_empty_prompt")
    assert model.model_index.get("requires_aesthetics_score") == pipe.config.get("requires_aesthetics_score")


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_loaded_networks_compute_what_those_of_diffusers_compute(folders: dict[str, Path], family: str) -> None:
    model, pipe = load_folder(folders[family]), diffusers.DiffusionPipeline.from_pretrained(folders[family])
    unet = model.unet.config
    x, context = torch.randn(2, 4, 6, 10), torch.randn(2, 77, unet.context_dim)
    options: dict[str, Any] = {}
    vector = None
    if unet.vector == "text_time":
        ids = (unet.vector_dim - 12) // unet.size_dim
        options["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 12), "time_ids": torch.randn(2, ids) * 100}
        sinusoids = diffusers.models.embeddings.get_timestep_embedding(
            options["added_cond_kwargs"]["time_ids"].flatten(), unet.size_dim, True, 0
        )
        vector = torch.cat([options["added_cond_kwargs"]["text_embeds"], sinusoids.reshape(2, -1)], dim=1)
    theirs = pipe.unet(x, torch.tensor([999, 1]), context, **options).sample
    torch.testing.assert_close(
        model.unet(x, torch.tensor([999, 1]), context, vector=vector), theirs, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        model.autoencoder.decode(x), pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample, rtol=1e-5, atol=1e-5
    )
    for part, encoder in encoders(model).items():
        ids = getattr(pipe, part.replace("text_encoder", "tokenizer"))(
            ["a cat", "do!"], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        ).input_ids
        hidden = getattr(pipe, part)(ids, output_hidden_states=True)
        last = hidden.hidden_states[-2] if family.startswith("sdxl") else hidden.last_hidden_state
        ours = encoder(["a cat", "do!"])
        torch.testing.assert_close(ours.tokens, last, rtol=1e-5, atol=1e-5)
        if part == "text_encoder_2":
            torch.testing.assert_close(ours.pooled, hidden.text_embeds, rtol=1e-5, atol=1e-5)


def test_a_variant_is_read_where_a_part_has_it_and_the_plain_file_where_not(
    folders: dict[str, Path], resaved: Callable[..., Path]
) -> None:
    folder = resaved("sdxl", torch.float16, variant="fp16")
    variant = load_folder(folder, variant="fp16")
    assert variant.dtype == torch.float16
    (folder / "text_encoder_2" / "model.fp16.safetensors").unlink()
    save_file(
        load_file(folders["sdxl"] / "text_encoder_2/model.safetensors"), folder / "text_encoder_2/model.safetensors"
    )
    mixed = load_folder(folder, variant="fp16", dtype=torch.float32)
    plain = load_folder(folders["sdxl"])
    assert isinstance(mixed.text_encoder, PairedTextEncoder)
    assert isinstance(plain.text_encoder, PairedTextEncoder)
    torch.testing.assert_close(
        mixed.text_encoder.second.state_dict(), plain.text_encoder.second.state_dict(), rtol=0, atol=0
    )
    for name, value in mixed.unet.state_dict().items():
        torch.testing.assert_close(value, plain.unet.state_dict()[name].half().float(), rtol=0, atol=0)


def test_a_variant_that_no_part_has_is_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"no part of .* has weights of variant 'fp16'; leave variant out"):
        load_folder(folders["sd1"], variant="fp16")


def test_weights_that_exist_as_a_variant_only_are_named(resaved: Callable[..., Path]) -> None:
    with pytest.raises(FileNotFoundError, match="only as the variant fp16: pass variant="):
        load_folder(resaved("sd1", variant="fp16"))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_of_diffusers_are_read(resaved: Callable[..., Path], variant: str | None) -> None:
    folder = resaved("sdxl", max_shard_size="50KB", variant=variant)
    assert len(list((folder / "unet").glob("*.safetensors"))) > 3
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1
    model = load_folder(folder, variant=variant)
    for part, module in networks(model).items():
        files = [load_file(file) for file in (folder / part).glob("*.safetensors")]
        stored = {key.removeprefix("text_model."): value for file in files for key, value in file.items()}
        ours = {key.removeprefix("text_model."): value for key, value in module.state_dict().items()}
        torch.testing.assert_close(ours, stored, rtol=0, atol=0)


def test_legacy_shard_names_are_read(resaved: Callable[..., Path]) -> None:
    folder = resaved("sd1", max_shard_size="50KB", variant="fp16")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    content = json.loads(index.read_text())
    for name in set(content["weight_map"].values()):
        (folder / "unet" / name).rename(folder / "unet" / legacy(name))
    content["weight_map"] = {key: legacy(name) for key, name in content["weight_map"].items()}
    index.unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors.fp16.index.json").write_text(json.dumps(content))
    stored: dict[str, Tensor] = {}
    for file in (folder / "unet").glob("*-of-*.fp16.safetensors"):
        stored |= load_file(file)
    torch.testing.assert_close(load_folder(folder, variant="fp16").unet.state_dict(), stored, rtol=0, atol=0)


def legacy(name: str) -> str:
    """`NAME.fp16-00001-of-00002.safetensors` in the order of old: `NAME-00001-of-00002.fp16.safetensors`."""
    stem, shard = name.removesuffix(".safetensors").split(".fp16")
    return f"{stem}{shard}.fp16.safetensors"


@pytest.mark.parametrize("ones", [0, 1, 2])
def test_legacy_names_of_the_vae_attention_are_read(copied: Callable[..., Path], ones: int) -> None:
    folder, old = copied(), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    renamed = {}
    for key, value in state.items():
        new = next((n for n in old if f".{n}." in key), None)
        shaped = value.reshape(*value.shape, *[1] * ones) if new and key.endswith("weight") else value
        renamed[key.replace(f".{new}.", f".{old[new]}.") if new else key] = shaped
    assert renamed.keys() != state.keys()
    save_file(renamed, file)
    torch.testing.assert_close(load_folder(folder).autoencoder.state_dict(), state, rtol=0, atol=0)


def test_text_encoder_keys_with_prefix_and_position_ids_are_read(copied: Callable[..., Path]) -> None:
    folder = copied()
    before = load_folder(folder).text_encoder.state_dict()
    file = folder / "text_encoder/model.safetensors"
    prefixed = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file({**prefixed, "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    torch.testing.assert_close(load_folder(folder).text_encoder.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_one_dtype_for_all_but_a_vae_that_overflows(folders: dict[str, Path], dtype: torch.dtype) -> None:
    model = load_folder(folders["sd1"], dtype=dtype)
    assert {p.dtype for p in model.unet.parameters()} | {p.dtype for p in model.text_encoder.parameters()} == {dtype}
    kept = torch.float32 if dtype == torch.float16 else dtype
    assert {p.dtype for p in model.autoencoder.parameters()} == {kept}
    exact = load_folder(folders["sd1"]).unet.state_dict()
    converted = {name: tensor.to(dtype) for name, tensor in exact.items()}
    torch.testing.assert_close(model.unet.state_dict(), converted, rtol=0, atol=0)


def test_a_vae_without_force_upcast_follows_into_float16(copied: Callable[..., Path]) -> None:
    folder = copied()
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"force_upcast": False}))
    assert next(load_folder(folder, dtype=torch.float16).autoencoder.parameters()).dtype == torch.float16


def test_without_a_dtype_all_networks_take_that_of_the_unet_file(copied: Callable[..., Path]) -> None:
    folder = copied()
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        file = folder / f"{part}.safetensors"
        save_file({key: value.bfloat16() for key, value in load_file(file).items()}, file)
    model = load_folder(folder)
    assert {p.dtype for module in networks(model).values() for p in module.parameters()} == {torch.bfloat16}


def test_weights_of_the_right_dtype_stay_mapped_to_their_file(folders: dict[str, Path]) -> None:
    """A private mapping: changing a loaded weight changes no file, and no other model loaded from it."""
    one, two = load_folder(folders["sd1"]), load_folder(folders["sd1"])
    before = two.unet.state_dict()["conv_in.weight"].clone()
    with torch.no_grad():
        one.unet.state_dict()["conv_in.weight"].zero_()
    torch.testing.assert_close(two.unet.state_dict()["conv_in.weight"], before, rtol=0, atol=0)
    stored = load_file(folders["sd1"] / "unet/diffusion_pytorch_model.safetensors")["conv_in.weight"]
    torch.testing.assert_close(stored, before, rtol=0, atol=0)


def test_a_subfolder_and_links_are_followed(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "inner").symlink_to(folders["sd1"])
    assert_same_weights(load_folder(tmp_path / "outer", subfolder="inner"), folders["sd1"])


def test_a_cache_of_links_to_blobs_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    """The layout of the hub's cache: every file of a snapshot is a link out of it."""
    for file in folders["sd1"].rglob("*.*"):
        link = tmp_path / "snapshot" / file.relative_to(folders["sd1"])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    assert_same_weights(load_folder(tmp_path / "snapshot"), folders["sd1"])


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint", "ControlNet", "ControlNetInpaint"])
def test_folders_of_other_tasks_load(copied: Callable[..., Path], kind: str) -> None:
    folder = copied()
    index = json.loads((folder / "model_index.json").read_text())
    extra = {"_class_name": f"StableDiffusion{kind}Pipeline", "controlnet": ["diffusers", "ControlNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index | extra))
    assert load_folder(folder).family == "sd1"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("task", ["", "Img2Img", "Inpaint"])
@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM", "PNDM", "EulerDiscrete"])
@pytest.mark.parametrize("bare", [True, False])
def test_the_first_configurations_are_mended_as_diffusers_mends_them(
    copied: Callable[..., Path], family: str, task: str, scheduler: str, bare: bool
) -> None:
    folder = copied(family)
    config: dict[str, Any] = {"_class_name": f"{scheduler}Scheduler", "beta_start": 0.001}
    if not bare:
        config |= without_underscores(getattr(diffusers, f"{scheduler}Scheduler")(beta_start=0.001).config)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    unet = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(unet | {"_diffusers_version": "0.8.0", "sample_size": 32}))
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = f"StableDiffusion{'XL' if family == 'sdxl' else ''}{task}Pipeline"
    index["scheduler"] = ["diffusers", f"{scheduler}Scheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model, pipe = load_folder(folder), diffusers.DiffusionPipeline.from_pretrained(folder)
    rebuilt = type(pipe.scheduler).from_config(dict(model.scheduler_config))
    assert without_underscores(rebuilt.config) == without_underscores(pipe.scheduler.config)
    assert model.unet.config.sample_size == pipe.unet.config.sample_size == (64 if family == "sd1" else 32)


def without_underscores(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
