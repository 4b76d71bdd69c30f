"""Every kind of weights from format to format and back, bit by bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.architecture import AutoencoderConfig
from configs.interchange import autoencoder_to_json
from configs.interchange_extras import controlnet_to_json
from ldm.checkpoint import load_folder, load_single_file, save_folder
from ldm.checkpoint.convert import Options, convert
from ldm.checkpoint.embedding import read_embedding
from ldm.checkpoint.extras import load_controlnet
from ldm.checkpoint.inspection import inspected
from ldm.checkpoint.names_compvis import to_original, vae_names
from ldm.checkpoint.save import save_network
from ldm.checkpoint.separate_vae import load_vae
from tests.ldm.checkpoint.originals import UNET, assert_same, randomised, sd2_file, tiny, write
from tests.ldm.checkpoint.test_controlnet_files import CONTROLNETS, original
from unet.controlnet import ControlNet
from vae import AutoencoderKL

SMALL = AutoencoderConfig(channels=(16, 32, 32), norm_groups=16)
HALF = Options(dtype=torch.float16)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


# models


@pytest.mark.parametrize("name", ["sd1-inpaint", "sdxl"])
def test_file_to_folder_to_file(name: str, tmp_path: Path) -> None:
    """Each tensor in its own dtype, though the model is not."""
    source, state = tiny(name)
    mixed = {key: tensor.half() if key.startswith(UNET) else tensor for key, tensor in state.items()}
    first = write(mixed, tmp_path / "first.safetensors")
    folder = convert(first, tmp_path / "v1.5")
    assert load_folder(folder).unet.config == source.unet.config
    assert convert(folder, tmp_path / "second.safetensors") == tmp_path / "second.safetensors"
    same(load_file(tmp_path / "second.safetensors"), mixed)


def test_a_sharded_folder_of_a_variant(tmp_path: Path) -> None:
    source, state = tiny("sd1")
    folder = save_folder(source, tmp_path / "folder", variant="fp16", max_shard_size="400KB", dtype=torch.float16)
    assert len(list((folder / "unet").glob("*.fp16-*.safetensors"))) > 1
    written = convert(folder, tmp_path / "m.safetensors", Options(variant="fp16"))
    same(load_file(written), {key: tensor.half() for key, tensor in state.items()})
    assert_same(
        load_single_file(convert(folder, tmp_path / "f.safetensors", Options(torch.float32, variant="fp16"))),
        load_folder(folder, variant="fp16", dtype=torch.float32),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A training's checkpoint, what of it is the model, and what is not: averaged weights and others."""
    state = tiny("sd1")[1]
    unet = {key: tensor for key, tensor in state.items() if key.startswith(UNET)}
    beside = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": 2 * tensor for key, tensor in unet.items()}
    tied = torch.linspace(0, 1, 10)
    beside |= {"model_ema.num_updates": torch.tensor(7), "betas": tied, "alphas_cumprod": tied}
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    torch.save({"state_dict": state | beside, "global_step": 3, "optimizer_states": [{"x": torch.zeros(3)}]}, path)
    return path, state, beside


def test_prune(trained: tuple[Path, dict[str, Tensor], dict[str, Tensor]], tmp_path: Path) -> None:
    """Without it all tensors are kept as they are, with it those of the model; the optimizer's are never read."""
    path, state, beside = trained
    whole = convert(path, tmp_path / "whole.safetensors")
    same(load_file(whole), state | beside)
    assert metadata(whole)["global_step"] == "3"
    pruned = convert(path, tmp_path / "pruned.safetensors", Options(prune=True))
    same(load_file(pruned), state)
    assert "global_step" not in metadata(pruned)
    assert_same(load_single_file(whole), tiny("sd1")[0])


def test_extract_ema(trained: tuple[Path, dict[str, Tensor], dict[str, Tensor]], tmp_path: Path) -> None:
    path, state, beside = trained
    averaged = {key: 2 * tensor if key.startswith(UNET) else tensor for key, tensor in state.items()}
    same(load_file(convert(path, tmp_path / "a.safetensors", Options(extract_ema=True, prune=True))), averaged)
    kept = {key: tensor for key, tensor in beside.items() if not key.startswith("model_ema.diffusion_model")}
    same(load_file(convert(path, tmp_path / "b.safetensors", Options(extract_ema=True))), averaged | kept)
    with pytest.raises(ValueError, match="holds no averaged"):
        convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", Options(extract_ema=True))
    with pytest.raises(ValueError, match="is a folder, which holds no averaged"):
        convert(convert(path, tmp_path / "folder"), tmp_path / "c.safetensors", Options(extract_ema=True))
    assert not (tmp_path / "c.safetensors").exists()


def test_notes_of_a_file_go_along(tmp_path: Path) -> None:
    said = {"modelspec.title": "Cats", "modelspec.author": "me", "modelspec.hash_md5": "0x0", "ss_note": "x"}
    file = write(tiny("sdxl")[1], tmp_path / "cats.safetensors", said)
    told = metadata(convert(file, tmp_path / "whole.safetensors", HALF))
    assert (told["modelspec.title"], told["modelspec.author"], told["ss_note"]) == ("Cats", "me", "x")
    assert "modelspec.hash_md5" not in told
    assert "ss_note" not in metadata(convert(file, tmp_path / "pruned.safetensors", Options(prune=True)))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_stable_diffusion_2_predicts_is_noted(kind: str, tmp_path: Path) -> None:
    """Asked once, written down; and whatever the person says."""
    file = sd2_file(tmp_path / "sd2.safetensors", -1.5 if kind == "v_prediction" else 0.0)
    mixed = {key: tensor.half() if ".out." in key else tensor for key, tensor in load_file(file).items()}
    save_file(mixed, file)
    written = convert(file, tmp_path / "asked.safetensors")
    same(load_file(written), mixed)
    loaded = load_single_file(written)
    assert (loaded.scheduler_config["prediction_type"], loaded.notes) == (kind, ())
    other = "epsilon" if kind == "v_prediction" else "v_prediction"
    folder = convert(file, tmp_path / "told", Options(prediction_type=other))
    assert load_folder(folder).scheduler_config["prediction_type"] == other


def test_parts_that_a_file_lacks_come_from_elsewhere(tmp_path: Path) -> None:
    source, state = tiny("sd1")
    file = write({key: state[key] for key in state if key.startswith(UNET)}, tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="holds no autoencoder and no text encoder"):
        convert(file, tmp_path / "m.safetensors")
    folder = str(save_folder(source, tmp_path / "folder"))
    written = convert(file, tmp_path / "m.safetensors", Options(vae=folder, text_encoder=folder))
    same(load_file(written), state)


# networks beside a model


def test_vae(tmp_path: Path) -> None:
    vae = randomised(AutoencoderKL(replace(SMALL, scaling_factor=0.13025, sample_size=1024)), 1)
    first = save_network(vae, autoencoder_to_json(vae.config), tmp_path / "1", dtype=torch.float16, overwrite=False)
    file = convert(first, tmp_path / "vae.safetensors")
    same(load_file(file), {key: tensor.half() for key, tensor in to_original(vae_names(SMALL), vae.state_dict())})
    assert metadata(file)["modelspec.architecture"] == "stable-diffusion-xl-v1/vae"
    second = convert(file, tmp_path / "2")
    assert load_vae(second).config == vae.config
    weights = "diffusion_pytorch_model.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()


def test_a_vae_that_does_not_say_for_what(tmp_path: Path) -> None:
    vae = randomised(AutoencoderKL(SMALL), 1)
    state = dict(to_original(vae_names(SMALL), vae.state_dict()))
    torch.save({"state_dict": state}, tmp_path / "vae.pt")
    file = convert(tmp_path / "vae.pt", tmp_path / "vae.safetensors")
    same(load_file(file), state)
    assert "modelspec.architecture" not in metadata(file)
    with pytest.warns(UserWarning, match=r"config\.json has the scaling_factor .* 0\.18215; for SDXL make it 0\.13025"):
        convert(file, tmp_path / "folder")
    odd = autoencoder_to_json(replace(SMALL, scaling_factor=0.5))
    folder = save_network(vae, odd, tmp_path / "odd", dtype=None, overwrite=False)
    with pytest.raises(ValueError, match=r"VAE cannot be a single file.*scaling_factor 0\.5"):
        convert(folder, tmp_path / "odd.safetensors")


@pytest.mark.parametrize("family", CONTROLNETS)
def test_controlnet(family: str, tmp_path: Path) -> None:
    network = randomised(ControlNet(CONTROLNETS[family]), 2)
    json = controlnet_to_json(network.config)
    first = save_network(network, json, tmp_path / "first", dtype=None, overwrite=False)
    file = convert(first, tmp_path / "control.safetensors")
    same(load_file(file), original(network, network.config, "control_model."))
    second = load_controlnet(convert(file, tmp_path / "second"))
    assert second.config == network.config
    same(dict(second.state_dict()), dict(network.state_dict()))


# LoRAs and embeddings

KOHYA = {
    "sd1": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768),
        "lora_te_text_model_encoder_layers_3_mlp_fc1": (3072, 768),
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (640, 640),
        "lora_te1_text_model_encoder_layers_3_mlp_fc1": (3072, 768),
        "lora_te2_text_model_encoder_layers_3_mlp_fc2": (1280, 5120),
    },
}


@pytest.mark.parametrize("family", KOHYA)
def test_lora(family: str, tmp_path: Path) -> None:
    """To peft's layout in a folder of diffusers and back; the family is found out."""
    tensors: dict[str, Tensor] = {}
    for rank, (name, (out, wide)) in enumerate(KOHYA[family].items(), start=1):
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, wide)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank)
        tensors[f"{name}.alpha"] = torch.tensor(0.1 * rank)
    save_file(tensors, tmp_path / "kohya.safetensors")
    peft = convert(tmp_path / "kohya.safetensors", tmp_path / "peft")
    assert peft == tmp_path / "peft" / "pytorch_lora_weights.safetensors"
    assert all(".lora_A." in key or ".lora_B." in key for key in load_file(peft))
    same(load_file(convert(tmp_path / "peft", tmp_path / "again.safetensors", Options(layout="kohya"))), tensors)
    half = load_file(convert(peft, tmp_path / "half.safetensors", Options(torch.float16, layout="kohya")))
    same(half, {key: tensor if "alpha" in key else tensor.half() for key, tensor in tensors.items()})


def test_a_lora_of_another_kind_has_no_place_in_peft(tmp_path: Path) -> None:
    name = next(iter(KOHYA["sd1"]))
    loha = {f"{name}.hada_w{i}_{side}": torch.ones(2, 2) for i in (1, 2) for side in "ab"}
    for i in (1, 2):
        loha |= {f"{name}.hada_w{i}_a": torch.ones(320, 2), f"{name}.hada_w{i}_b": torch.ones(2, 768)}
    save_file(loha, tmp_path / "loha.safetensors")
    with pytest.raises(ValueError, match="save it as kohya's"):
        convert(tmp_path / "loha.safetensors", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
    written = load_file(convert(tmp_path / "loha.safetensors", tmp_path / "k.safetensors", Options(layout="kohya")))
    same({key: tensor for key, tensor in written.items() if "alpha" not in key}, loha)


MOON = torch.randn(3, 768)
EMBEDDINGS: dict[str, tuple[Any, dict[str, Tensor]]] = {
    "moon.pt": ({"string_to_param": {"*": MOON}, "name": "a1111"}, {"moon": MOON}),
    "diffusers.bin": ({"<moon>": MOON}, {"<moon>": MOON}),
    "bare.pt": (MOON, {"bare": MOON}),
    "emb.safetensors": ({"emb_params": MOON}, {"emb": MOON}),
    "pair.safetensors": (
        {"clip_l": MOON, "clip_g": torch.ones(3, 1280)},
        {"clip_l": MOON, "clip_g": torch.ones(3, 1280)},
    ),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings(name: str, tmp_path: Path) -> None:
    content, expected = EMBEDDINGS[name]
    path = tmp_path / name
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    same(load_file(convert(path, tmp_path / "out" / "moon.safetensors")), expected)
    folder = convert(path, tmp_path / "folder", HALF)
    assert folder == tmp_path / "folder" / "learned_embeds.safetensors"
    same(load_file(folder), {word: rows.half() for word, rows in expected.items()})


def test_a_folder_keeps_the_word_of_a_pair(tmp_path: Path) -> None:
    save_file(EMBEDDINGS["pair.safetensors"][0], tmp_path / "moonlight.safetensors")
    folder = convert(tmp_path / "moonlight.safetensors", tmp_path / "folder").parent
    words, _ = read_embedding(folder)
    assert list(words) == ["moonlight"]
    assert inspected(folder / "learned_embeds.safetensors", hashed=False).details["word"] == ["moonlight"]
    assert list(read_embedding(convert(folder, tmp_path / "moon.safetensors"))[0]) == ["moon"]


# what cannot be


OTHERS = {
    "lllite.safetensors": ({"lora_controlnet": torch.ones(1)}, "is a control-LoRA: converted are a model"),
    "tiny.safetensors": (
        {"0.weight": torch.ones(8, 3, 3, 3), "1.conv.0.weight": torch.ones(8, 8, 3, 3)},
        r"only a file is written: name it out\.safetensors",
    ),
    "other.safetensors": ({"x": torch.ones(2, 3)}, "of no kind that is known: converted are"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_say_what_can_be_converted(name: str, tmp_path: Path) -> None:
    content, text = OTHERS[name]
    save_file(content, tmp_path / name)
    with pytest.raises(ValueError, match=text):
        convert(tmp_path / name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    save_file({"<moon>": MOON}, tmp_path / "moon.safetensors")
    for options, text in (
        (Options(prune=True), "--prune is for a model, and .* is a textual inversion"),
        (Options(extract_ema=True), "--extract-ema is for a model"),
        (Options(layout="kohya"), "--layout is for a LoRA"),
    ):
        with pytest.raises(ValueError, match=text):
            convert(tmp_path / "moon.safetensors", tmp_path / "x.safetensors", options)
    for name in ("x.ckpt", "x.safetensor", "x.json"):
        with pytest.raises(ValueError, match="safetensors only"):
            convert(tmp_path / "moon.safetensors", tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        convert(tmp_path / "sun.safetensors", tmp_path / "x.safetensors")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert(tmp_path / "moon.safetensors", tmp_path / "moon.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["moon.safetensors"]
