"""The tables of original names, against diffusers' own conversion at real size, by names and shapes on `meta`."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as theirs
from torch import Tensor

from configs.architecture import TextEncoderConfig
from configs.interchange import autoencoder_to_json, text_encoder_to_json, unet_to_json
from ldm.checkpoint.meta import on_meta
from ldm.checkpoint.names_compvis import (
    Name,
    fits,
    openclip_names,
    own_view,
    to_original,
    to_own,
    unet_names,
    vae_names,
)
from tests.ldm.checkpoint.originals import (
    BIGG_XL,
    CLIP_SD2,
    UNET,
    VAE,
    Family,
    meta_state,
    real_families,
    with_last_layer,
)

FAMILIES = real_families()
XL = FAMILIES["sdxl"]


@cache
def state(name: str) -> dict[str, Tensor]:
    return meta_state(FAMILIES[name])


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def ours(names: list[Name], tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return dict(to_own(names, {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}))


@pytest.mark.parametrize("name", FAMILIES)
def test_unet(name: str) -> None:
    """One to one, tensor by tensor: diffusers' converter passes the very objects on, and its network wants them."""
    family = FAMILIES[name]
    json: dict[str, Any] = unet_to_json(family.unet)
    found = ours(unet_names(family.unet), state(name), UNET)
    expected = theirs.convert_ldm_unet_checkpoint(
        dict(state(name)), json | {"num_class_embeds": json.get("num_class_embeds")}
    )
    assert found.keys() == expected.keys()
    assert all(found[key] is expected[key] for key in expected)
    network = on_meta("", diffusers.UNet2DConditionModel.from_config, unet_to_json(family.unet))
    assert shapes(found) == shapes(network.state_dict())


# Names of published files where a wrong one could pass both our table, read backwards, and diffusers' converter.
PUBLISHED = {
    "sd1": (
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
        "model.diffusion_model.input_blocks.11.0.emb_layers.1.bias",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.8.2.conv.bias",
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
        "first_stage_model.encoder.down.2.downsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.encoder.norm_out.weight",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.bias",
        "first_stage_model.decoder.up.3.block.2.conv2.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.decoder.mid.block_2.norm1.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.out_proj.weight",
    ),
    "sd2-v": (
        "cond_stage_model.model.positional_embedding",
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
        "cond_stage_model.model.ln_final.bias",
    ),
    "sdxl": (
        "model.diffusion_model.label_emb.0.2.weight",
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight",
        "model.diffusion_model.output_blocks.2.2.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.8.0.out_layers.3.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
    ),
    "refiner": (
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.8.2.conv.weight",
        "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",
    ),
    "x4-upscaler": (
        "model.diffusion_model.label_emb.weight",
        "model.diffusion_model.input_blocks.10.0.skip_connection.bias",
        "model.diffusion_model.output_blocks.2.2.conv.weight",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names(name: str) -> None:
    assert set(PUBLISHED[name]) <= state(name).keys()


@pytest.mark.parametrize("name", ["sd1", "x4-upscaler"])
def test_vae(name: str) -> None:
    family = FAMILIES[name]
    json = autoencoder_to_json(family.vae)
    as_published = {
        key: tensor[:, :, None, None] if ".attn_1." in key and tensor.ndim == 2 else tensor
        for key, tensor in state(name).items()
    }
    found = ours(vae_names(family.vae), as_published, VAE)
    expected = theirs.convert_ldm_vae_checkpoint(as_published, json)
    assert shapes(found) == shapes(expected)
    assert all(found[key] is expected[key] for key in expected if "attentions" not in key)
    network = on_meta("", diffusers.AutoencoderKL.from_config, json)
    assert shapes(found) == shapes(network.state_dict())


@pytest.mark.parametrize(("name", "prefix"), [("sd2-v", CLIP_SD2), ("sdxl", BIGG_XL)])
def test_openclip(name: str, prefix: str) -> None:
    family = FAMILIES[name]
    text = family.texts[prefix]
    found = ours(openclip_names(text), state(name), prefix)
    expected = theirs.convert_open_clip_checkpoint(_transformers(text), state(name), prefix)
    expected = {
        key if "text_projection" in key else f"text_model.{key.removeprefix('text_model.')}": v
        for key, v in expected.items()
    }
    if text.projection_dim is None:
        expected.pop("text_projection.weight", None)
    assert shapes(found) == shapes(expected)


def _transformers(text: TextEncoderConfig) -> Any:
    return on_meta("", transformers.CLIPTextModel, transformers.CLIPTextConfig(**text_encoder_to_json(text)))


def test_openclip_by_value() -> None:
    """Thirds and transposes on numbers, with a projection narrower than the text."""
    text = TextEncoderConfig(width=6, layers=1, heads=1, mlp_width=8, vocabulary=10, max_length=5, projection_dim=4)
    rows = torch.arange(3 * 6 * 6.0).reshape(18, 6)
    name, projection = "transformer.resblocks.0.attn.in_proj_weight", torch.arange(24.0).reshape(6, 4)
    found = dict(to_own(openclip_names(text), {name: rows, "text_projection": projection}))
    attention = "text_model.encoder.layers.0.self_attn"
    for part, projected in enumerate("qkv"):
        torch.testing.assert_close(found[f"{attention}.{projected}_proj.weight"], rows[6 * part : 6 * part + 6])
        assert found[f"{attention}.{projected}_proj.weight"].untyped_storage()._cdata == rows.untyped_storage()._cdata
    torch.testing.assert_close(found["text_projection.weight"], projection.T)


@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name: str) -> None:
    """Every name on either side once, except the three that share their rows."""
    family: Family = FAMILIES[name]
    for names in (unet_names(family.unet), vae_names(family.vae)):
        assert len({n.own for n in names}) == len({n.original for n in names}) == len(names)
    for prefix, text in family.texts.items():
        if prefix.endswith("model."):
            whole = with_last_layer(text) if prefix == CLIP_SD2 else text
            names = openclip_names(whole)
            tensors = ours(names, state(name), prefix)
            inner = {key.removeprefix(prefix): t for key, t in state(name).items() if key.startswith(prefix)}
            assert shapes(dict(to_original(names, tensors))) == shapes(inner)


def test_fits() -> None:
    kinds = [Name("a", "b"), Name("a", "b", "conv"), Name("a", "b", "third", 1), Name("a", "b", "transposed")]
    originals = [(6, 4), (6, 4, 1, 1), (18, 4), (4, 6)]
    for name, original in zip(kinds, originals, strict=True):
        assert fits(name, (6, 4), original)
        assert own_view(name, torch.zeros(original)).shape == (6, 4)
        assert not fits(name, (6, 4), (5, 4))
        assert not fits(name, (6, 4), ())
    assert fits(kinds[1], (6, 4), (6, 4, 1))
    assert not fits(kinds[1], (6, 4), (6, 4, 3, 3))
