import logging
from dataclasses import replace

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from transformers import CLIPTextModel as Oracle

from configs.presets import CLIP_L, OPENCLIP_BIGG
from text_encoder import LAST, PENULTIMATE, CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from text_encoder.clip import canonical_keys
from text_encoder.encoder import chunk_mask, weigh

SMALL_L = replace(CLIP_L, width=32, layers=4, heads=4, mlp_width=64)
SMALL_G = replace(OPENCLIP_BIGG, width=40, layers=3, heads=5, mlp_width=80, projection_dim=24)
PROMPTS = ["", "a cat holding a banana!", "hello! " * 12 + "<|endoftext|> naïve 猫 (x:1.3) BREAK [y]"]
LONG = "one two three four five six seven eight nine ten " * 10  # 100 tokens
LONGER = LONG + LONG  # 200 tokens


class Case:
    """One of our encoders beside transformers' model and tokenizer with the same weights."""

    def __init__(self, config, pad, policy, tokenizer, seed):
        shape = CLIPTextConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            hidden_act=config.activation,
            projection_dim=config.projection_dim or 512,
            eos_token_id=config.eos_token_id,
        )
        self.oracle = (Oracle if config.projection_dim is None else CLIPTextModelWithProjection)(shape).eval()
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.oracle.named_parameters():
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(0.3 * noise + (1 if "norm" in name and name.endswith("weight") else 0))
        model = CLIPTextModel(config)
        model.load_state_dict(canonical_keys(self.oracle.state_dict()))
        self.ours = CLIPTextEncoder(Tokenizer.clip(pad=pad), model, policy).eval()
        self.tokenizer = tokenizer

    @torch.no_grad()
    def expected(self, prompts):
        """transformers' output for prompts cut at 77 tokens, as diffusers asks for it."""
        batch = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return self.oracle(batch.input_ids, output_hidden_states=True)


@pytest.fixture(scope="module", params=[0, 1])
def last(request, oracle_tokenizer):
    return Case(SMALL_L, "<|endoftext|>", LAST, oracle_tokenizer("sd1"), request.param)


@pytest.fixture(scope="module", params=[0, 1])
def sdxl(request, oracle_tokenizer):
    """The two encoders of SDXL, as cases."""
    first = Case(SMALL_L, "<|endoftext|>", PENULTIMATE, oracle_tokenizer("sd1"), request.param)
    return first, Case(SMALL_G, "!", PENULTIMATE, oracle_tokenizer("sdxl_2"), request.param + 10)


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@torch.no_grad()
def test_last_hidden_state(last):
    embedding = last.ours(PROMPTS)
    assert_near(embedding.tokens, last.expected(PROMPTS).last_hidden_state)
    assert embedding.mask is None
    assert embedding.pooled is None


@pytest.mark.parametrize("clip_skip", [0, 1, 2, 4])
@torch.no_grad()
def test_clip_skip_of_sd_is_normed(last, clip_skip):
    """diffusers' formula: hidden_states[-(clip_skip + 1)], then the final norm."""
    state = last.expected(PROMPTS).hidden_states[-(clip_skip + 1)]
    assert_near(last.ours(PROMPTS, clip_skip=clip_skip).tokens, last.oracle.final_layer_norm(state))


@pytest.mark.parametrize("clip_skip", [None, 0, 1, 2])
@torch.no_grad()
def test_pair_is_two_bare_hidden_states_side_by_side(sdxl, clip_skip):
    """diffusers' formula: hidden_states[-(clip_skip + 2)] of both without norm, text_embeds of the second."""
    first, second = sdxl
    states = [case.expected(PROMPTS).hidden_states[-((clip_skip or 0) + 2)] for case in sdxl]
    embedding = PairedTextEncoder(first.ours, second.ours)(PROMPTS, clip_skip=clip_skip)
    assert_near(embedding.tokens, torch.cat(states, dim=-1))
    assert_near(embedding.pooled, second.expected(PROMPTS).text_embeds)
    assert embedding.mask is None


@torch.no_grad()
def test_second_encoder_reads_its_own_prompts(sdxl):
    first, second = sdxl
    others = ["a dog", "!", "two dogs"]
    embedding = PairedTextEncoder(first.ours, second.ours)(PROMPTS, prompts_2=others)
    states = first.expected(PROMPTS).hidden_states[-2], second.expected(others).hidden_states[-2]
    assert_near(embedding.tokens, torch.cat(states, dim=-1))
    assert_near(embedding.pooled, second.expected(others).text_embeds)


@torch.no_grad()
def test_refiner_is_one_encoder(sdxl):
    _, second = sdxl
    embedding = second.ours(PROMPTS)
    expected = second.expected(PROMPTS)
    assert_near(embedding.tokens, expected.hidden_states[-2])
    assert_near(embedding.pooled, expected.text_embeds)


@torch.no_grad()
def test_long_prompts_are_read_in_chunks(sdxl, caplog):
    """Each chunk as the oracle reads it alone, the shorter prompts filled up with empty ones and masked."""
    _, second = sdxl
    with caplog.at_level(logging.WARNING, "text_encoder"):
        embedding = second.ours([LONGER, "a cat", LONG])
    words = LONGER.split()
    rows = [
        [" ".join(words[0:75]), " ".join(words[75:150]), " ".join(words[150:])],
        ["a cat", "", ""],
        [" ".join(words[0:75]), " ".join(words[75:100]), ""],
    ]
    expected = [second.expected(row) for row in rows]
    assert embedding.tokens.shape == (3, 3 * 77, 40)
    for index, row in enumerate(expected):
        assert_near(embedding.tokens[index], row.hidden_states[-2].flatten(0, 1))
        assert_near(embedding.pooled[index], row.text_embeds[0])
    assert embedding.mask.sum(dim=1).tolist() == [231, 77, 154]
    assert embedding.mask.dtype == torch.bool
    assert embedding.mask[2].tolist() == [True] * 154 + [False] * 77
    assert [record.args[1:] for record in caplog.records] == [(200, 3, 75), (100, 2, 75)]


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_batch(last):
    together = last.ours(["a cat", LONG, "(a:1.5) dog"], syntax="a1111").tokens
    assert_near(together[0, :77], last.ours(["a cat"]).tokens[0])
    assert_near(together[1], last.ours([LONG]).tokens[0])
    assert_near(together[2, :77], last.ours(["(a:1.5) dog"], syntax="a1111").tokens[0])


@torch.no_grad()
def test_equally_long_prompts_need_no_mask(last):
    embedding = last.ours([LONG, LONG.replace("one", "ten")])
    assert embedding.tokens.shape[:2] == (2, 154)
    assert embedding.mask is None


@torch.no_grad()
def test_pair_has_one_length(sdxl, caplog):
    """The second prompt is longer for the second encoder: both fill up to the same length, one note for each text."""
    first, second = sdxl
    pair = PairedTextEncoder(first.ours, second.ours)
    embedding = pair(["a", "b"], prompts_2=["a", LONG])
    assert_near(embedding.tokens[1, :77, :32], first.expected(["b"]).hidden_states[-2][0])
    assert_near(embedding.tokens[1, 77:, :32], first.expected([""]).hidden_states[-2][0])
    assert embedding.mask.sum(dim=1).tolist() == [77, 154]
    assert len(caplog.records) == 1
    pair([LONG])
    assert len(caplog.records) == 2


@torch.no_grad()
def test_weights_scale_tokens_and_keep_the_mean(last):
    """z' = w z mean(z) / mean(w z), in double precision; ids 320 2368 525 4331 are "a cat on wood"."""
    z = last.ours(["a cat on wood", "plain"]).tokens.double()
    w = torch.ones(77, dtype=torch.float64)
    w[2], w[4] = 1.3, 1 / 1.1
    scaled = w[:, None] * z[0]
    found = last.ours(["a (cat:1.3) on [wood]", "plain"], syntax="a1111").tokens
    torch.testing.assert_close(found[0].double(), scaled * z[0].mean() / scaled.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1].double(), z[1], rtol=0, atol=0)


@torch.no_grad()
def test_weights_act_on_each_chunk_alone(sdxl):
    first, second = sdxl
    pair = PairedTextEncoder(first.ours, second.ours)
    found = pair(["a cat BREAK (a dog:1.4)"], syntax="a1111")
    for chunk, prompt in enumerate(["a cat", "(a dog:1.4)"]):
        alone = pair([prompt], syntax="a1111").tokens[0]
        assert_near(found.tokens[0, 77 * chunk : 77 * (chunk + 1)], alone)
    assert_near(found.pooled, second.expected(["a cat"]).text_embeds)


@pytest.mark.parametrize("seed", [0, 1])
def test_weigh_in_closed_form(seed):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 5, 3, generator=draw, dtype=torch.float64) + 1
    w = torch.tensor([[1.0, 1.5, 0.0, -1.0, 2.0], [1.0] * 5], dtype=torch.float64)
    found = weigh(z.float(), w.float())
    expected = z[0] * w[0, :, None]
    torch.testing.assert_close(found[0].double(), expected * z[0].mean() / expected.mean(), rtol=1e-5, atol=1e-6)
    assert found[0].mean().item() == pytest.approx(z[0].mean().item(), rel=1e-5)
    assert torch.equal(found[1], z[1].float())
    assert weigh(z.half(), w.half()).dtype == torch.float16
    assert torch.equal(weigh(torch.zeros(1, 2, 2), torch.ones(1, 2)), torch.zeros(1, 2, 2))


def test_chunk_mask():
    device = torch.device("cpu")
    assert chunk_mask([2, 2], 3, device) is None
    assert chunk_mask([1, 2], 2, device).tolist() == [[True, True, False, False], [True] * 4]


@torch.no_grad()
def test_encoders_move_and_cast_with_their_models(sdxl):
    first, second = sdxl
    keys = set(PairedTextEncoder(first.ours, second.ours).state_dict())
    assert "first.model.text_model.final_layer_norm.weight" in keys
    assert "second.model.text_projection.weight" in keys
    model = CLIPTextModel(SMALL_L)
    encoder = CLIPTextEncoder(Tokenizer.clip(), model).to(torch.bfloat16)
    assert model.text_model.final_layer_norm.weight.dtype == torch.bfloat16
    assert encoder(["a (cat:1.2)"], syntax="a1111").tokens.dtype == torch.bfloat16
    with torch.device("meta"):
        elsewhere = CLIPTextEncoder(Tokenizer.clip(), CLIPTextModel(SMALL_L))
    assert elsewhere(["a cat"]).tokens.device.type == "meta"


def test_gradients_reach_the_token_embeddings(last):
    model = CLIPTextModel(SMALL_L)
    CLIPTextEncoder(Tokenizer.clip(), model)(["a cat"]).tokens.square().sum().backward()
    rows = model.text_model.embeddings.token_embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert rows == [320, 2368, 49406, 49407]


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_prompts_must_be_a_filled_list(last, prompts):
    with pytest.raises(ValueError, match="list of at least one prompt"):
        last.ours(prompts)


def test_bad_input_says_what_to_do(last, sdxl):
    pair = PairedTextEncoder(sdxl[0].ours, sdxl[1].ours)
    with pytest.raises(ValueError, match="got 2 prompts but 1 prompts_2; give one for each"):
        pair(["a", "b"], prompts_2=["a"])
    with pytest.raises(ValueError, match="cannot skip 5 of this text encoder's 4 layers; lower clip_skip"):
        last.ours(["a"], clip_skip=5)
    with pytest.raises(ValueError, match="'compel' is unknown; use 'plain' or 'a1111'"):
        last.ours(["a"], syntax="compel")
    with pytest.raises(ValueError, match="has 49408 tokens, the text encoder only 100; take the tokenizer"):
        CLIPTextEncoder(Tokenizer.clip(), CLIPTextModel(replace(SMALL_L, vocabulary=100)))
    with pytest.raises(ValueError, match="2 tokens at a time leave no room"):
        CLIPTextEncoder(Tokenizer.clip(), CLIPTextModel(replace(SMALL_L, max_length=2)))
    short = CLIPTextEncoder(Tokenizer.clip(), CLIPTextModel(replace(SMALL_L, max_length=20)))
    with pytest.raises(ValueError, match=r"read 77 and 20; set model_max_length"):
        PairedTextEncoder(last.ours, short)
