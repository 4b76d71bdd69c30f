"""What a file is, from names, shapes and notes alone."""

import subprocess
import sys
from dataclasses import replace

import pytest

from configs import presets
from ldm.checkpoint import infer
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.kinds import KINDS
from ldm.checkpoint.published import scheduler_config
from ldm.checkpoint.recognise import IGNORED, recognise
from tests.ldm.checkpoint.originals import (
    BIGG_REFINER,
    CLIP_SD1,
    CLIP_SD2,
    CLIP_XL,
    UNET,
    VAE,
    real_families,
    real_shapes,
)

REAL = real_families()
V = {"prediction_type": "v_prediction"}
IN_CONV = f"{UNET}input_blocks.0.0.weight"
Shapes = dict[str, tuple[int, ...]]


@pytest.mark.parametrize("name", REAL)
def test_every_published_family(name: str) -> None:
    """The whole configuration, from the names and shapes of the published file."""
    family = REAL[name]
    found = recognise(real_shapes(name), {}, prediction_type="v_prediction" if name == "sd2-v" else None)
    assert (found.family, found.task) == (family.family, family.task)
    assert found.unet == family.unet
    assert replace(family.vae, sample_size=0) == replace(found.parts["vae"].config, sample_size=0)  # type: ignore[arg-type]
    texts = [part.config for key, part in found.parts.items() if key.startswith("text_encoder")]
    assert texts == list(family.texts.values())
    assert found.missing == found.absent == found.unknown == found.foreign == ()
    read = {each.original for part in found.parts.values() for each in part.names}
    assert read <= real_shapes(name).keys()


def test_keys_that_are_of_no_use() -> None:
    """Schedules, EMA copies, buffers, the last layer of SD 2's text encoder: neither read nor complained of."""
    extra = ("betas", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "posterior_variance", "logvar", "denoiser.sigmas")
    extra += ("model_ema.decay", "model_ema.num_updates", "first_stage_model.loss.logvar", "optimizer.state.0")
    extra += (f"{CLIP_SD1}text_model.embeddings.position_ids", "cond_stage_model.logit_scale", "depth_model.model.x")
    shapes = real_shapes("sd1") | dict.fromkeys(extra, (1,))
    assert recognise(shapes, {}).foreign == ()
    assert recognise(shapes | {"somebody.else": (1,)}, {}).foreign == ("somebody.else",)
    assert recognise(real_shapes("sd2-base"), {}).parts["text_encoder"].config == presets.OPENCLIP_H
    assert not IGNORED.fullmatch(IN_CONV)


def test_sd2_text_encoder_without_its_last_layer() -> None:
    """As converters from diffusers folders write it: 23 layers, no projection."""
    last = f"{CLIP_SD2}transformer.resblocks.23."
    shapes = {key: s for key, s in real_shapes("sd2-base").items() if last not in key and "text_projection" not in key}
    found = recognise(shapes, {})
    assert found.parts["text_encoder"].config == presets.OPENCLIP_H
    assert found.absent == found.foreign == ()


def test_sd2_text_encoder_with_its_last_layer_and_no_projection() -> None:
    """24 layers are all of OpenCLIP's: the last is left out, or prompts would be read one layer too deep."""
    shapes = {key: shape for key, shape in real_shapes("sd2-base").items() if "text_projection" not in key}
    assert any(key.startswith(f"{CLIP_SD2}transformer.resblocks.23.") for key in shapes)
    found = recognise(shapes, {})
    assert found.parts["text_encoder"].config == presets.OPENCLIP_H
    assert found.absent == found.foreign == ()


def test_text_encoder_without_text_model() -> None:
    """Trap 8: merges leave `text_model.` out. The tensors are read from where they are."""
    shapes = {key.replace("transformer.text_model.", "transformer."): s for key, s in real_shapes("sd1").items()}
    found = recognise(shapes, {})
    assert found.parts["text_encoder"].config == presets.CLIP_L
    assert found.missing == found.absent == found.foreign == ()


@pytest.mark.parametrize("name", ["sd1", "sd2-unclip", "sdxl", "refiner", "x4-upscaler"])
def test_averaged_weights_alone(name: str) -> None:
    """The EMA copy's names have lost their dots; each is found again."""
    shapes: Shapes = {}
    for key, shape in real_shapes(name).items():
        flat = "model_ema." + key.removeprefix("model.").replace(".", "")
        shapes[flat if key.startswith(UNET) else key] = shape
    found = recognise(shapes, {})
    assert found.ema
    assert found.unet == recognise(real_shapes(name), {}).unet
    assert found.absent == found.unknown == found.foreign == ()
    with pytest.raises(CheckpointError, match="weights alone"):
        recognise(shapes, {}, ema=False)
    with pytest.raises(CheckpointError, match="no averaged"):
        recognise(real_shapes(name), {}, ema=True)


def test_both_kinds_of_weights() -> None:
    """Trap 12: the plain ones, unless the averaged ones are asked for."""
    plain = real_shapes("sd1")
    shapes = plain | {
        "model_ema." + key.removeprefix("model.").replace(".", ""): s for key, s in plain.items() if UNET in key
    }
    assert recognise(shapes, {}).parts["unet"].names[0].original.startswith(UNET)
    averaged = recognise(shapes, {}, ema=True)
    assert averaged.ema
    assert {name.original for name in averaged.parts["unet"].names} == {key for key in shapes if "model_ema" in key}


@pytest.mark.parametrize(("name", "prefix", "missing"), [
    ("sd1", VAE, ("vae",)),
    ("sd1", CLIP_SD1, ("text_encoder",)),
    ("sdxl", CLIP_XL, ("text_encoder",)),
    ("refiner", BIGG_REFINER, ("text_encoder_2",)),
    ("sdxl", "conditioner.", ("text_encoder", "text_encoder_2")),
])  # fmt: skip
def test_missing_parts(name: str, prefix: str, missing: tuple[str, ...]) -> None:
    found = recognise({key: s for key, s in real_shapes(name).items() if not key.startswith(prefix)}, {})
    assert found.missing == missing
    assert found.family == REAL[name].family


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_unet_alone(prefix: str) -> None:
    shapes = {key.replace(UNET, prefix): s for key, s in real_shapes("sdxl").items() if key.startswith(UNET)}
    found = recognise(shapes, {})
    assert found.unet == presets.UNET_SDXL
    assert found.missing == ("vae", "text_encoder", "text_encoder_2")


def test_missing_and_unknown_tensors_by_name() -> None:
    """Trap 9."""
    shapes = dict(real_shapes("sdxl"))
    lost = f"{UNET}input_blocks.5.1.transformer_blocks.1.attn2.to_k.weight"
    del shapes[lost]
    shapes[f"{UNET}surprise.weight"] = (1,)
    found = recognise(shapes, {})
    assert found.absent == (lost,)
    assert found.unknown == (f"{UNET}surprise.weight",)
    assert found.unet == presets.UNET_SDXL


def outcome(shapes: Shapes) -> tuple[tuple[str, ...], str]:
    """(absent names, the refusal) of which one is empty."""
    try:
        return recognise(shapes, {}).absent, ""
    except CheckpointError as error:
        return (), str(error)


@pytest.mark.parametrize("key", [key for key in real_shapes("sd1") if key.startswith(UNET)][::23])
def test_any_tensor_may_be_the_missing_one(key: str) -> None:
    """It is named, or what is inferred names it; never another error."""
    absent, refusal = outcome({name: shape for name, shape in real_shapes("sd1").items() if name != key})
    assert absent == (key,) or key.removeprefix(UNET) in refusal


# prediction


def prediction(
    name: str, metadata: dict[str, str] | None = None, *extra: str, **options: str
) -> tuple[str | None, bool]:
    found = recognise(real_shapes(name) | dict.fromkeys(extra, (0,)), metadata or {}, **options)  # type: ignore[arg-type]
    return found.prediction.kind, found.prediction.zero_snr


def test_sd2_epsilon_or_v() -> None:
    """Trap 2: the same names and shapes. Given, noted, or unknown; never guessed from the names."""
    assert prediction("sd2-base") == (None, False)
    assert prediction("sd2-base", {"global_step": "875000"}) == ("epsilon", False)
    assert prediction("sd2-base", {"global_step": "140000"}) == (None, False)
    assert prediction("sd2-base", prediction_type="epsilon")[0] == "epsilon"
    assert prediction("sd2-base", {"global_step": "875000"}, prediction_type="v")[0] == "v_prediction"
    for noted, kind in (("v", "v_prediction"), ("epsilon", "epsilon"), ("V-Prediction", "v_prediction")):
        assert prediction("sd2-base", {"modelspec.prediction_type": noted})[0] == kind
    assert prediction("sd2-base", {"modelspec.architecture": "stable-diffusion-v2-768-v"})[0] == "v_prediction"
    assert prediction("sd2-base", {"modelspec.architecture": "stable-diffusion-v2-512"})[0] == "epsilon"
    assert prediction("sd2-depth") == prediction("sd2-inpaint") == ("epsilon", False)
    assert prediction("x4-upscaler") == ("v_prediction", False)
    with pytest.raises(ValueError, match="'noise' is unknown; use one of epsilon, v_prediction"):
        prediction("sd2-base", prediction_type="noise")


def test_markers() -> None:
    """Trap 3: empty tensors in SDXL files."""
    assert prediction("sdxl") == ("epsilon", False)
    assert prediction("sdxl", None, "v_pred") == ("v_prediction", False)
    assert prediction("sdxl", None, "v_pred", "ztsnr") == ("v_prediction", True)
    assert prediction("sdxl", {"ss_zero_terminal_snr": "True", "modelspec.prediction_type": "v"}) == (
        "v_prediction",
        True,
    )
    assert prediction("sdxl", None, "v_pred", prediction_type="epsilon") == ("epsilon", False)


def test_sizes_and_titles_in_the_metadata() -> None:
    assert recognise(real_shapes("sd1"), {"modelspec.resolution": "768x768"}).unet.sample_size == 96
    assert recognise(real_shapes("sd1"), {"modelspec.resolution": "512x768"}).unet.sample_size == (96, 64)
    assert recognise(real_shapes("sd1"), {"modelspec.resolution": "large"}).unet.sample_size == 64
    assert recognise(real_shapes("sd2-base"), {"modelspec.prediction_type": "v"}).unet.sample_size == 96
    assert recognise(real_shapes("sdxl"), {"modelspec.title": "Stable Diffusion XL Turbo 1.0"}).distilled == "turbo"
    assert recognise(real_shapes("sdxl"), {"modelspec.title": "Stable Diffusion XL"}).distilled == ""


def test_schedulers() -> None:
    """As in the published folders, and trap 4: the betas do not change with the prediction."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    sd1 = scheduler_config("sd1", "", "epsilon", zero_snr=False)
    assert sd1.items() >= (betas | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}).items()
    sd2_v = scheduler_config("sd2", "", "v_prediction", zero_snr=False)
    assert sd2_v.items() >= (betas | V | {"_class_name": "DDIMScheduler", "set_alpha_to_one": False}).items()
    xl = scheduler_config("sdxl", "", "epsilon", zero_snr=False)
    assert xl.items() >= (betas | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}).items()
    zero = scheduler_config("sdxl", "", "v_prediction", zero_snr=True)
    assert zero.items() >= (betas | V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}).items()
    turbo = scheduler_config("sdxl", "", "epsilon", zero_snr=False, distilled="turbo")
    assert turbo.items() >= {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}.items()
    upscale = scheduler_config("sd2", "upscale", "v_prediction", zero_snr=False)
    assert upscale.items() >= (V | {"beta_start": 0.0001, "beta_end": 0.02}).items()
    assert scheduler_config("sd1", "", "epsilon", zero_snr=False) == sd1


# what is no model

LIKE = {
    "an IP-Adapter": "image_proj.proj.weight",
    "a LoRA": "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    "a control-LoRA": "lora_controlnet",
    "a ControlNet": "control_model.input_blocks.0.0.weight",
    "a T2I-Adapter": "body.0.block1.weight",
    "a textual inversion (an embedding)": "emb_params",
    "a model of another family (SD 3, Flux, or another transformer)": "double_blocks.0.img_mod.lin.weight",
    "a model of another family (trained with EDM noise)": "edm_mean",
    "the U-Net of a diffusers folder": "down_blocks.0.resnets.0.conv1.weight",
    "an autoencoder (VAE) alone": "first_stage_model.decoder.conv_in.weight",
    "a tiny autoencoder (TAESD)": "decoder.layers.1.weight",
    "a text encoder alone": "text_model.encoder.layers.0.mlp.fc1.weight",
}


def test_there_is_an_example_of_each_kind() -> None:
    assert list(LIKE) == [kind for kind, _, _ in KINDS]


@pytest.mark.parametrize("kind", LIKE)
def test_no_model(kind: str) -> None:
    """Refused, saying what it looks like."""
    with pytest.raises(CheckpointError) as refused:
        recognise({LIKE[kind]: (4, 4, 3, 3)}, {})
    assert str(refused.value).startswith(f"it is {kind}: ")


@pytest.mark.parametrize(("shapes", "metadata", "text"), [
    ({}, {}, "it holds no tensors"),
    ({"fc.weight": (1, 2)}, {}, "it is no model that is known here (its names begin fc.weight)"),
    ({"x.y": (1, 2)}, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "it is a LoRA"),
    ({"input_blocks.0.0.weight": (8, 4, 3, 3), "zero_convs.0.0.weight": (8, 8, 1, 1)}, {}, "it is a ControlNet"),
    ({"lora_A": (1,)}, {}, "it is no model"),
    ({"ip_adapter.0.to_q_lora.down.weight": (4, 8), "ip_adapter.1.to_k_ip.weight": (8, 8)}, {}, "it is an IP-Adapter"),
])  # fmt: skip
def test_nothing_known(shapes: Shapes, metadata: dict[str, str], text: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        recognise(shapes, metadata)
    assert text in str(refused.value)


def test_models_with_other_noise() -> None:
    with pytest.raises(CheckpointError, match="EDM"):
        recognise(real_shapes("sdxl") | {"edm_mean": (4,), "edm_std": (4,)}, {})


def test_nonsense_shapes() -> None:
    """Of tensors that are looked at: an error of ours that names the network, never another."""
    for key in (IN_CONV, f"{UNET}out.2.weight"):
        for shape in ((), (0, 0, 0, 0), (7,)):
            assert outcome(real_shapes("sd1") | {key: shape})[1].startswith("U-Net (model.diffusion_model.*): ")
    for key in (f"{UNET}input_blocks.1.0.in_layers.2.weight", f"{UNET}time_embed.0.weight"):
        for shape in ((), (0, 0, 0, 0), (7,)):
            outcome(real_shapes("sd1") | {key: shape})


def test_dotted() -> None:
    assert infer.dotted("input_blocks101transformer_blocks0attn1to_out0weight") == (
        "input_blocks.10.1.transformer_blocks.0.attn1.to_out.0.weight"
    )
    assert infer.dotted("somethingelse") == "somethingelse"


def test_no_torch_is_needed() -> None:
    """Names tell what a file is in a program that has not loaded torch."""
    code = "import sys, ldm.checkpoint.recognise; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
