"""The whole network against diffusers' UNet2DConditionModel, by family, at small widths."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from configs.interchange import unet_from_json
from tests.unet.families import CROSS_DOWN, CROSS_UP, SD1, SDXL
from unet import UNet
from unet.embedding import guidance_sinusoid, sinusoid

SD2 = {**SD1, "attention_head_dim": (2, 4, 4, 6), "use_linear_projection": True, "upcast_attention": True}
SSD = {
    **SDXL,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, (2, 1), (1, 3)),
    "reverse_transformer_layers_per_block": ((2, 1, 1), (1, 0, 2), 1),
}
FAMILIES = {
    "sd1": SD1,
    "sd1-inpaint": {**SD1, "in_channels": 9},
    "sd1-instruct": {**SD1, "in_channels": 8},
    "sd2": SD2,
    "sd2-depth": {**SD2, "in_channels": 5},
    "sd2-unclip": {**SD2, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 48},
    "class-timestep": {**SD2, "class_embed_type": "timestep"},
    "sdxl": SDXL,
    "sdxl-refiner": {
        **SDXL,
        "block_out_channels": (32, 64, 96, 96),
        "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", CROSS_UP, CROSS_UP, "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "layers_per_block": 1,
        "attention_head_dim": (2, 4, 6, 6),
        "projection_class_embeddings_input_dim": 20 + 5 * 8,
    },
    "upscale": {
        **SD1,
        "in_channels": 7,
        "down_block_types": ("DownBlock2D", CROSS_DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP, "UpBlock2D"),
        "only_cross_attention": (True, True, True, False),
        "num_class_embeds": 50,
        "use_linear_projection": True,
    },
    "lcm": {**SD1, "time_cond_proj_dim": 32},
    "ssd": SSD,
    "ssd-without-middle": {**SSD, "mid_block_type": None},
    "uneven": {**SD1, "layers_per_block": (1, 2, 1, 3), "out_channels": 8, "norm_num_groups": 16, "norm_eps": 1e-3},
}
TIMES = torch.tensor([1.0, 500.25, 999.0])
MASK = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] * 6 + [False]])


@pytest.fixture
def pair(twins):
    def build(json, seed=0):
        theirs = UNet2DConditionModel(**json)
        ours = UNet(unet_from_json(dict(theirs.config)))
        twins(ours, theirs, seed)
        return ours, theirs

    return build


def inputs(json, size):
    """The same conditions in our words and in diffusers'."""
    ours, theirs = {}, {}
    if json.get("addition_embed_type"):
        ids = json["projection_class_embeddings_input_dim"] // 8 - 2
        pooled = torch.randn(3, json["projection_class_embeddings_input_dim"] - 8 * ids)
        sizes = torch.randint(0, 1024, (3, ids))
        ours["vector"] = torch.cat([pooled, sinusoid(sizes.flatten(), 8).view(3, -1)], dim=1)
        theirs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    elif json.get("class_embed_type") == "projection":
        ours["vector"] = theirs["class_labels"] = torch.randn(3, json["projection_class_embeddings_input_dim"])
    elif json.get("class_embed_type") == "timestep":
        ours["vector"] = theirs["class_labels"] = torch.tensor([0, 20, 700])
    elif json.get("num_class_embeds"):
        ours["vector"] = theirs["class_labels"] = torch.tensor([0, 20, 49])
    if dim := json.get("time_cond_proj_dim"):
        ours["guidance"] = torch.tensor([0.0, 6.5, 13.0])
        theirs["timestep_cond"] = guidance_sinusoid(ours["guidance"], dim)
    x = torch.randn(3, json.get("in_channels", 4), *size)
    return (x, TIMES, torch.randn(3, 7, json["cross_attention_dim"])), ours, theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(16, 8), (20, 28), (9, 13)])
@torch.no_grad()
def test_family(family, size, pair, assert_same):
    ours, theirs = pair(FAMILIES[family], seed=size[0])
    args, mine, yours = inputs(FAMILIES[family], size)
    assert_same(ours(*args, **mine), theirs(*args, **yours).sample)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (3, 2)])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@torch.no_grad()
def test_tiny_latents(family, size, pair, assert_same):
    ours, theirs = pair(FAMILIES[family])
    args, mine, yours = inputs(FAMILIES[family], size)
    assert_same(ours(*args, **mine), theirs(*args, **yours).sample)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "upscale"])
@torch.no_grad()
def test_mask(family, pair, assert_same):
    ours, theirs = pair(FAMILIES[family])
    args, mine, yours = inputs(FAMILIES[family], (8, 12))
    masked = ours(*args, mask=MASK, **mine)
    assert_same(masked, theirs(*args, encoder_attention_mask=MASK, **yours).sample)
    assert not torch.allclose(masked, ours(*args, **mine), rtol=0.01)


@torch.no_grad()
def test_a_text_with_every_token_masked_is_no_nan(pair):
    ours, _ = pair(SD1)
    args, _, _ = inputs(SD1, (8, 12))
    assert ours(*args, mask=torch.zeros(3, 7, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("family", ["sd1", "sdxl", "ssd-without-middle"])
@torch.no_grad()
def test_residuals(family, pair, assert_same):
    ours, theirs = pair(FAMILIES[family])
    args, mine, yours = inputs(FAMILIES[family], (9, 12))
    shapes = []
    for block in ours.down_blocks:
        block.register_forward_hook(lambda _, __, skips: shapes.extend(skip.shape for skip in skips))
    ours(*args, **mine)
    shapes = [(3, 32, 9, 12), *shapes, shapes[-1]]  # conv_in, the levels, the middle
    residuals = [torch.randn(shape) for shape in shapes]
    before = [residual.clone() for residual in residuals]
    *down, mid = residuals
    found = ours(*args, residuals=residuals, **mine)
    yours |= {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}
    assert_same(found, theirs(*args, **yours).sample)
    assert all(map(torch.equal, residuals, before))


@pytest.mark.parametrize("family", ["sd1", "sdxl", "upscale", "lcm"])
def test_gradients(family, pair, assert_same):
    ours, theirs = pair(FAMILIES[family])
    (x, *args), mine, yours = inputs(FAMILIES[family], (9, 12))
    weight = torch.randn(3, 4, 9, 12)
    inputs_with_grad = []
    for network, extra in ((ours, mine), (theirs, yours)):
        inputs_with_grad.append(x.clone().requires_grad_())
        out = network(inputs_with_grad[-1], *args, **extra)
        ((out if network is ours else out.sample) * weight).sum().backward()
    assert_same(inputs_with_grad[0].grad, inputs_with_grad[1].grad, 1e-5)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_same(parameter.grad, expected[name].grad, 1e-5)


@torch.no_grad()
def test_inputs_of_another_precision_are_cast_at_the_door(pair):
    ours, theirs = pair(FAMILIES["sdxl"])
    args, mine, yours = inputs(FAMILIES["sdxl"], (8, 8))
    exact = ours(*args, **mine)
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    found = ours(*args, **mine)
    assert found.dtype == torch.bfloat16
    x, t, context = args
    yours["added_cond_kwargs"]["text_embeds"] = yours["added_cond_kwargs"]["text_embeds"].bfloat16()
    reference = theirs(x.bfloat16(), t, context.bfloat16(), **yours).sample
    assert (found - exact).norm() < 1.1 * (reference - exact).norm()


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(pair, assert_same):
    ours, _ = pair(FAMILIES["sdxl"])
    (x, t, context), mine, _ = inputs(FAMILIES["sdxl"], (9, 13))
    together = ours(x, t, context, mask=MASK, **mine)
    for i in range(3):
        one = slice(i, i + 1)
        alone = ours(x[one], t[one], context[one], mask=MASK[one], vector=mine["vector"][one])
        assert_same(alone, together[one])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cuda_gives_what_the_cpu_gives(family, dtype, pair, assert_same, monkeypatch):
    """Masked, as fused kernels have their own rules for masks; within a few roundings of the precision."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ours, _ = pair(FAMILIES[family])
    args, mine, _ = inputs(FAMILIES[family], (9, 13))
    expected = ours(*args, mask=MASK, **mine)
    args = [value.cuda() for value in args]
    mine = {name: value.cuda() for name, value in mine.items()}
    found = ours.to("cuda", dtype)(*args, mask=MASK.cuda(), **mine)
    assert found.dtype == dtype
    assert_same(found.float().cpu(), expected, {torch.float32: 3e-5}.get(dtype, 8 * torch.finfo(dtype).eps))
