"""IP-Adapters against diffusers', which reads the same tensors from the layout of the published files."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from configs.architecture import ImagePromptConfig
from configs.interchange import unet_from_json
from ldm.checkpoint.infer_extras import image_prompt_config
from tests.unet.families import SD1, SDXL, conditions
from unet import UNet
from unet.image_prompt import ImagePrompt, PromptedAttention

RESAMPLER = {"width": 64, "depth": 4, "heads": 2, "mlp_width": 256}
KINDS = {
    "plain": {"image_dim": 20},
    "full": {"image_dim": 16, "tokens": 0},
    "plus": {"image_dim": 20, "tokens": 6, **RESAMPLER},
    "face": {"image_dim": 0, "id_dim": 12, "id_width": 24},
    "face_plus": {"image_dim": 20, "id_dim": 12, "id_width": 24, **RESAMPLER},
}
SD1_ATTENTIONS = (32, 64, 64, 64, 64, 64, 64, 32, 32, 96)  # down, up, and the middle last
PATCHES = 5


def images(kind):
    """What a projection takes for two pictures: (ours, diffusers' `image_embeds`)."""
    image, face, patches = torch.randn(2, 20), torch.randn(2, 12), torch.randn(2, PATCHES, 20)
    full = torch.randn(2, PATCHES, 16)
    return {
        "plain": ((image,), image),
        "full": ((full,), full),
        "plus": ((patches,), patches),
        "face": ((face,), face),
        "face_plus": ((face, patches), face),
    }[kind]


def grouped(prompt):
    """A file's tensors as diffusers takes them: {"image_proj": ..., "ip_adapter": ...}."""
    groups = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in prompt.state_dict().items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    return groups


@pytest.fixture
def attached(randomise, twins):
    """(prompt, our U-Net and diffusers' with it) of a kind."""

    def build(kind, json=SD1, attentions=SD1_ATTENTIONS):
        theirs = UNet2DConditionModel(**json)
        unet = UNet(unet_from_json(dict(theirs.config)))
        twins(unet, theirs, 1)
        config = ImagePromptConfig(kind, context_dim=json["cross_attention_dim"], attentions=attentions, **KINDS[kind])
        prompt = randomise(ImagePrompt(config), 2)
        theirs._load_ip_adapter_weights([grouped(prompt)], low_cpu_mem_usage=False)
        return prompt, unet, theirs

    return build


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_projection_and_unet(kind, attached, assert_same):
    prompt, unet, theirs = attached(kind)
    own, embeds = images(kind)
    projection = theirs.encoder_hid_proj.image_projection_layers[0]
    if kind == "face_plus":
        projection.clip_embeds = own[1][:, None]
    tokens = prompt(*own)
    assert_same(tokens, projection(embeds))
    (x, t, context), _, _ = conditions(SD1, (16, 8))
    plain = unet(x, t, context)
    names = unet.state_dict().keys()
    prompt.attach(unet, tokens=tokens.shape[1])
    prompt.scale = 0.7
    for processor in theirs.attn_processors.values():
        processor.scale = [0.7]
    expected = theirs(x, t, context, added_cond_kwargs={"image_embeds": [embeds[:, None]]}).sample
    found = unet(x, t, torch.cat([context, tokens], 1))
    if kind != "full":  # there diffusers counts 257 tokens, whatever they are
        assert prompt.config.tokens == tokens.shape[1]
    assert_same(found, expected)
    assert (found - plain).abs().max() > 0.01
    assert unet.state_dict().keys() == names
    prompt.detach(unet)
    torch.testing.assert_close(unet(x, t, context), plain, rtol=0, atol=0)


@torch.no_grad()
def test_second_version_of_face_plus(randomise, assert_same):
    """Its files add the tokens before the resampler to those behind it, which are then equally wide."""
    from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection

    config = ImagePromptConfig("face_plus", context_dim=64, **KINDS["face_plus"])
    prompt = randomise(ImagePrompt(config), 2)
    theirs = UNet2DConditionModel(**SD1)._convert_ip_adapter_image_proj_to_diffusers(
        grouped(prompt)["image_proj"], low_cpu_mem_usage=False
    )
    assert isinstance(theirs, IPAdapterFaceIDPlusImageProjection)
    (face, patches), _ = images("face_plus")
    theirs.clip_embeds, theirs.shortcut = patches[:, None], True
    assert_same(prompt.image_proj(face, patches, shortcut=True), theirs(face))


@torch.no_grad()
def test_sdxl_and_masked_text(attached, assert_same):
    attentions = (64,) * 4 + (96,) * 6 + (96,) * 9 + (64,) * 6 + (96,) * 3
    prompt, unet, theirs = attached("plain", SDXL, attentions)
    (x, t, context), mine, yours = conditions(SDXL, (8, 8))
    (image,), embeds = images("plain")
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    prompt.attach(unet)
    yours["added_cond_kwargs"]["image_embeds"] = [embeds[:, None]]
    seen = torch.cat([mask, torch.ones(2, 4, dtype=torch.bool)], 1)
    found = unet(x, t, torch.cat([context, prompt(image)], 1), mask=seen, **mine)
    assert_same(found, theirs(x, t, context, encoder_attention_mask=mask, **yours).sample)


@torch.no_grad()
def test_two_at_once_are_added(attached, randomise):
    """Closed form at weight zero: the second alone, and the first alone."""
    first, unet, _ = attached("plain")
    second = randomise(ImagePrompt(first.config), 5)
    (x, t, context), _, _ = conditions(SD1, (16, 8))
    (image,), _ = images("plain")
    a, b = first(image), second(image)
    alone = {}
    for name, prompt, tokens in (("a", first, a), ("b", second, b)):
        prompt.attach(unet)
        alone[name] = unet(x, t, torch.cat([context, tokens], 1))
        prompt.detach(unet)
    first.attach(unet)
    second.attach(unet)
    with pytest.raises(ValueError, match="not the last"):
        first.detach(unet)
    both = torch.cat([context, a, b], 1)
    for name, quiet, heard in (("a", second, first), ("b", first, second)):
        quiet.scale, heard.scale = 0.0, 1.0
        torch.testing.assert_close(unet(x, t, both), alone[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_shapes_tell_the_configuration(kind):
    config = ImagePromptConfig(kind, context_dim=24, attentions=SD1_ATTENTIONS, **KINDS[kind])
    with torch.device("meta"):
        state = ImagePrompt(config).state_dict()
    assert image_prompt_config({name: tuple(tensor.shape) for name, tensor in state.items()}) == config


def test_another_family_is_refused(attached):
    prompt, unet, _ = attached("plain")
    other = UNet(unet_from_json(SDXL))
    with pytest.raises(ValueError, match="made for a U-Net of 10 cross-attentions to tokens of width 24"):
        prompt.attach(other)
    full = ImagePrompt(ImagePromptConfig("full", 16, 24, 0, attentions=SD1_ATTENTIONS))
    with pytest.raises(ValueError, match="tokens=257"):
        full.attach(unet)
    assert not any(isinstance(module, PromptedAttention) for module in unet.modules())
