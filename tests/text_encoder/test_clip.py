from dataclasses import replace

import pytest
import torch
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as Oracle
from transformers import CLIPTextModelWithProjection as ProjectingOracle

from configs.architecture import TextEncoderConfig
from configs.presets import CLIP_L, OPENCLIP_BIGG, OPENCLIP_H
from text_encoder.clip import CLIPTextModel, canonical_keys

SMALL = {
    "clip_l": replace(CLIP_L, width=32, layers=4, heads=4, mlp_width=72, vocabulary=1000, eos_token_id=999),
    "openclip_h": replace(OPENCLIP_H, width=48, layers=3, heads=3, mlp_width=96, vocabulary=1000, eos_token_id=2),
    "bigg": replace(
        OPENCLIP_BIGG, width=40, layers=5, heads=5, mlp_width=160, projection_dim=24, vocabulary=1000, eos_token_id=999
    ),
    "odd": TextEncoderConfig(
        width=24, layers=2, heads=1, mlp_width=20, max_length=9, norm_eps=1e-3, vocabulary=70, eos_token_id=5
    ),
}
ACCURACY = 1e-6  # relative to the largest value; 1e-5 is the promise, exact equality is measured


def oracle_of(config: TextEncoderConfig):
    """transformers' own model of the same shape."""
    names = CLIPTextConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection_dim or 512,
        vocab_size=config.vocabulary,
        max_position_embeddings=config.max_length,
        layer_norm_eps=config.norm_eps,
        eos_token_id=config.eos_token_id,
        bos_token_id=0,
        pad_token_id=1,
    )
    return (Oracle if config.projection_dim is None else ProjectingOracle)(names).eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Every parameter away from its starting value, at a size that keeps activations near 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif "embedding" in name or parameter.ndim == 1:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)


def pair_of(config: TextEncoderConfig, seed: int):
    oracle = oracle_of(config)
    randomise(oracle, seed)
    ours = CLIPTextModel(config)
    ours.load_state_dict(canonical_keys(oracle.state_dict()), strict=True)
    return ours.eval(), oracle


def random_ids(config: TextEncoderConfig, seed: int, b: int = 3) -> torch.Tensor:
    """b rows of tokens with an end token at different places, once and repeated."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, config.vocabulary - 1, (b, config.max_length), generator=draw)
    eos = config.vocabulary - 1 if config.eos_token_id == 2 else config.eos_token_id
    for row, place in enumerate(torch.randint(1, config.max_length, (b,), generator=draw)):
        ids[row, place:] = eos if row % 2 else 1
        ids[row, place] = eos
    return ids


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ACCURACY * expected.abs().max().item())


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("seed", [0, 1, 2])
@torch.no_grad()
def test_every_hidden_state_and_the_pooled_output(family, seed):
    config = SMALL[family]
    ours, oracle = pair_of(config, seed)
    ids = random_ids(config, seed)
    expected = oracle(ids, output_hidden_states=True)
    norm = oracle.final_layer_norm if config.projection_dim is None else oracle.text_model.final_layer_norm
    pooled = expected.pooler_output if config.projection_dim is None else expected.text_embeds
    assert len(expected.hidden_states) == config.layers + 1
    for skip in range(config.layers + 1):
        state = expected.hidden_states[-(skip + 1)]
        bare, bare_pooled = ours(ids, skip=skip, norm=False)
        normed, normed_pooled = ours(ids, skip=skip)
        assert_near(bare, state)
        assert_near(normed, norm(state))
        assert_near(bare_pooled, pooled)
        assert_near(normed_pooled, pooled)
    assert_near(ours(ids)[0], expected.last_hidden_state)


@pytest.mark.parametrize("n", [1, 5, 77])
@torch.no_grad()
def test_shorter_inputs(n):
    ours, oracle = pair_of(SMALL["clip_l"], 3)
    ids = torch.randint(0, 1000, (2, n), generator=torch.Generator().manual_seed(n))
    expected = oracle(ids)
    tokens, pooled = ours(ids)
    assert_near(tokens, expected.last_hidden_state)
    assert_near(pooled, expected.pooler_output)


@pytest.mark.parametrize("eos", [2, 999])
@torch.no_grad()
def test_pooling_place(eos):
    ours, oracle = pair_of(replace(SMALL["clip_l"], eos_token_id=eos), 4)
    ids = torch.full((4, 77), 7)
    ids[0, 20] = 998  # no end token: the highest id for eos 2, the first place otherwise
    ids[1, [9, 30]] = 999  # two of them: the first
    ids[2, 5:] = 999
    ids[3, [3, 60]] = torch.tensor([999, 2])
    assert ours._end(ids).tolist() == ([20, 9, 5, 3] if eos == 2 else [0, 9, 5, 3])
    assert_near(ours(ids)[1], oracle(ids).pooler_output)


@pytest.mark.parametrize("family", ["clip_l", "bigg"])
@pytest.mark.parametrize("prefix", [True, False])
@torch.no_grad()
def test_both_spellings_load_strictly(family, prefix):
    config = SMALL[family]
    ours, _ = pair_of(config, 5)
    written = {}
    for key, value in ours.state_dict().items():
        written[key if prefix else key.removeprefix("text_model.")] = value
    start = "text_model." if prefix else ""
    written[f"{start}embeddings.position_ids"] = torch.arange(77.0)[None]
    again = CLIPTextModel(config)
    again.load_state_dict(canonical_keys(written), strict=True)
    ids = random_ids(config, 6)
    torch.testing.assert_close(again(ids), ours(ids), rtol=0, atol=0)


def test_foreign_keys_keep_their_names():
    keys = {"vision_model.embeddings.weight", "text_projection.weight", "logit_scale"}
    assert set(canonical_keys(dict.fromkeys(keys, torch.zeros(1)))) == keys


@pytest.mark.parametrize("config", [CLIP_L, OPENCLIP_H, OPENCLIP_BIGG], ids=["clip_l", "openclip_h", "bigg"])
def test_presets_have_exactly_the_oracles_keys_and_shapes(config):
    with torch.device("meta"):
        ours, oracle = CLIPTextModel(config), oracle_of(config)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in canonical_keys(oracle.state_dict()).items()}
    assert not list(ours.buffers())


@pytest.mark.parametrize("skip", [-1, 5])
def test_skipping_layers_that_are_not_there(skip):
    with pytest.raises(ValueError, match=f"cannot skip {skip} of this text encoder's 4 layers; .*clip_skip"):
        CLIPTextModel(SMALL["clip_l"])(torch.zeros(1, 77, dtype=torch.int64), skip=skip)


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_the_oracle():
    ours, oracle = pair_of(SMALL["clip_l"], 7)
    ids = random_ids(SMALL["clip_l"], 8)
    exact = oracle(ids).last_hidden_state
    reference = (oracle.bfloat16()(ids).last_hidden_state.float() - exact).abs().mean()
    error = (ours.bfloat16()(ids)[0].float() - exact).abs().mean()
    assert error <= 1.1 * reference
