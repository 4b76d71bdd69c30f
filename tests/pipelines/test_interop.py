"""Models handed to diffusers and back: the same pictures from one set of weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint import embedded, load_model
from ldm.checkpoint.save import text_encoders
from ldm.model import LatentDiffusion
from pipelines import TextToImagePipeline, from_diffusers, to_diffusers

PROMPT = "a cat holding a banana"
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
TASKS = {
    "inpainting": ("StableDiffusionInpaintPipeline", 9),
    "instruct": ("StableDiffusionInstructPix2PixPipeline", 8),
}
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def theirs(pairs: Callable[[str], Any]) -> Callable[[str], Any]:
    """A pipeline of diffusers by family or task."""

    def get(family: str) -> Any:
        if family not in TASKS:
            return pairs(family).theirs
        name, channels = TASKS[family]
        parts = pairs("sd1").theirs.components
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel.from_config(parts["unet"].config, in_channels=channels)
        return getattr(diffusers, name)(**{**parts, "unet": unet.eval()}, requires_safety_checker=False)

    return get


def draw(pipe: Any, family: str = "sd1") -> Tensor:
    """Pictures (1, 3, 64, 64) of either side's pipeline."""
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    extra: dict[str, Any] = {
        "inpainting": {"image": image, "mask_image": (image[:, :1] > 0.5).float(), "height": 64, "width": 64},
        "instruct": {"image": image},
        "sdxl_refiner": {"image": image, "strength": 1.0},
    }.get(family, {"height": 64, "width": 64})
    seed = torch.Generator().manual_seed(0)
    pictures: Tensor = pipe(PROMPT, num_inference_steps=2, output_type="pt", generator=seed, **extra).images
    return pictures


def networks(side: Any) -> dict[str, Any]:
    """Those of a model or of a pipeline of diffusers, by its names."""
    if isinstance(side, LatentDiffusion):
        texts = {part: encoder.model for part, encoder in text_encoders(side).items()}
        return {"unet": side.unet, "vae": side.autoencoder, **texts}
    return {part: network for part, network in side.components.items() if isinstance(network, nn.Module)}


def parameters(side: Any) -> dict[str, nn.Parameter]:
    """All of them, without the prefix that transformers 4 has and 5 has not."""
    return {
        f"{part}.{name.removeprefix('text_model.')}": parameter
        for part, network in networks(side).items()
        for name, parameter in network.named_parameters()
    }


def places(side: Any) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in parameters(side).items()}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl_refiner", *TASKS])
def test_from_diffusers_and_back(theirs: Callable[[str], Any], family: str) -> None:
    before = theirs(family)
    model = from_diffusers(before)
    after = to_diffusers(model)
    assert places(model) == places(before) == places(after)
    assert {name: type(part) for name, part in after.components.items()} == {
        name: type(part) for name, part in before.components.items()
    }
    expected = draw(before, family)
    torch.testing.assert_close(draw(after, family), expected, rtol=0, atol=0)
    if family in ("sd1", "sd2", "sdxl"):
        torch.testing.assert_close(draw(TextToImagePipeline(model, device="cpu")), expected, **CLOSE)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "embedded"])
def test_to_diffusers_and_back(pairs: Callable[[str], Any], family: str) -> None:
    model = load_model(embedded() if family == "embedded" else pairs(family).folder, dtype=torch.bfloat16)
    model.unet.requires_grad_(False)
    pipe = to_diffusers(model)
    again = from_diffusers(pipe)
    assert places(model) == places(pipe) == places(again)
    assert pipe.dtype == torch.bfloat16
    for name in ("family", "model_index", "source", "vocabulary"):
        assert getattr(again, name) == getattr(model, name)
    for name in model.scheduler_config.keys() - {"_diffusers_version"}:
        assert again.scheduler_config[name] == model.scheduler_config[name]
    for part, network in networks(again).items():
        assert network.config == networks(model)[part].config
    for part, encoder in text_encoders(again).items():
        tokenizer, wanted = encoder.tokenizer, text_encoders(model)[part].tokenizer
        assert encoder.policy == text_encoders(model)[part].policy
        assert tokenizer.encode("Two cats!") == wanted.encode("Two cats!")
        assert (tokenizer.pad, tokenizer.max_length) == (wanted.pad, wanted.max_length)
    for side in (model, pipe, again):
        parts = networks(side)
        assert not any(parameter.requires_grad for parameter in parts["unet"].parameters())
        assert all(parameter.requires_grad for parameter in parts["vae"].parameters())
        assert not any(network.training for network in parts.values())


def test_a_tiny_autoencoder(pairs: Callable[[str], Any]) -> None:
    small = {f"{side}_block_out_channels": (8, 8, 8, 8) for side in ("encoder", "decoder")}
    parts = {**pairs("sd1").theirs.components, "vae": diffusers.AutoencoderTiny(**small)}
    before = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    model = from_diffusers(before)
    after = to_diffusers(model)
    assert places(model) == places(before) == places(after)
    expected = draw(before)
    for pipe in (after, TextToImagePipeline(model, device="cpu")):
        torch.testing.assert_close(draw(pipe), expected, **CLOSE)


def test_a_change_on_one_side_is_seen_on_the_other(pairs: Callable[[str], Any]) -> None:
    model = load_model(pairs("sdxl").folder)
    pipe = to_diffusers(model)
    again = from_diffusers(pipe)
    before = {name: parameter.detach().clone() for name, parameter in parameters(model).items()}
    with torch.no_grad():
        for parameter in parameters(pipe).values():
            parameter.add_(1)
    for side in (model, pipe, again):
        torch.testing.assert_close(dict(parameters(side)), {name: old + 1 for name, old in before.items()})
    model.unet.half()
    assert pipe.unet.dtype == again.unet.conv_in.weight.dtype == torch.float16
    assert places(model) == places(pipe) == places(again)


def test_learned_words_go_along(pairs: Callable[[str], Any]) -> None:
    ours = TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu")
    ours.load_textual_inversion({"cat": torch.ones(2, 32)}, token="banana</w>x")
    pipe = to_diffusers(ours.model)
    assert len(pipe.tokenizer) == pipe.text_encoder.config.vocab_size == 49408 + 2
    again = from_diffusers(pipe)
    ids = again.text_encoder.tokenizer.encode("a banana</w>x")
    assert ids == ours.text_encoder.tokenizer.encode("a banana</w>x")
    assert ids[1:] == [49408, 49409]


def lora(folder: Path) -> Path:
    name = f"unet.{QUERY}.lora_"
    save_file({f"{name}A.weight": torch.ones(2, 16), f"{name}B.weight": torch.ones(16, 2)}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def test_our_lora(pairs: Callable[[str], Any], tmp_path: Path) -> None:
    """One that is merged has to be settled first; one that comes later works on both sides."""
    model = load_model(pairs("sd1").folder)
    pipe = to_diffusers(model)
    plain = draw(pipe)
    model.loras.load(lora(tmp_path))
    changed = draw(TextToImagePipeline(model, device="cpu"))
    assert not torch.allclose(changed, plain, atol=1e-2)
    torch.testing.assert_close(draw(pipe), changed, **CLOSE)
    with pytest.raises(ValueError, match=r"fuse_lora\(\)"):
        to_diffusers(model)
    model.loras.fuse()
    torch.testing.assert_close(draw(to_diffusers(model)), changed, **CLOSE)


def test_their_lora(pairs: Callable[[str], Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pipe = to_diffusers(load_model(pairs("sd1").folder))
    pipe.load_lora_weights(lora(tmp_path))
    expected = draw(pipe)
    with pytest.raises(ValueError, match=r"the pipeline's unet .* 3 unexpected .*fuse_lora\(\) before unload"):
        from_diffusers(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(TextToImagePipeline(from_diffusers(pipe), device="cpu")), expected, **CLOSE)


def test_what_is_no_model_of_ours(pairs: Callable[[str], Any]) -> None:
    parts = pairs("sd1").theirs.components
    controlled = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=diffusers.ControlNetModel.from_unet(parts["unet"]), requires_safety_checker=False
    )
    with pytest.raises(ValueError, match=r"has controlnet \(ControlNetModel\); supported .*from_pipe"):
        from_diffusers(controlled)
    assert places(from_diffusers(diffusers.StableDiffusionPipeline.from_pipe(controlled))) == places(
        pairs("sd1").theirs
    )
    small = diffusers.UNet2DModel(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    other = diffusers.DDPMPipeline(small, diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match=r"unet \(UNet2DModel\), no text_encoder, no tokenizer, no vae; supported are"):
        from_diffusers(other)
    with pytest.raises(ValueError, match="a UNet2DModel is no pipeline"):
        from_diffusers(small)
    with pytest.raises(ValueError, match=r"such as pipe\.model, not a DDPMPipeline"):
        to_diffusers(other)  # type: ignore[arg-type]
