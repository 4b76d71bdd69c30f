"""Attention and transformers against diffusers'."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention import FeedForward as TheirFeedForward
from diffusers.models.attention_processor import Attention as TheirAttention
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from configs.architecture import UNetConfig
from unet.attention import Attention, FeedForward, Transformer, TransformerBlock

MASK = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] * 6 + [False]])
BIAS = -10000.0 * (~MASK).float()[:, None]  # (b, 1, n)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(heads, cross, masked, twins, assert_same):
    ours = Attention(32, 24 if cross else 32, heads)
    theirs = TheirAttention(32, 24 if cross else None, heads=heads, dim_head=32 // heads)
    twins(ours, theirs, heads)
    x, text, bias = 3 * torch.randn(3, 7, 32), 3 * torch.randn(3, 7, 24), BIAS if masked else None
    mask = None if bias is None else bias[:, None]
    assert_same(ours(x, text if cross else x, mask), theirs(x, text if cross else None, bias))


def test_attention_reads_the_text_through_keys_values(twins):
    """What a caller may compute once per prompt is what attention uses."""
    attention = Attention(32, 24, 4)
    text = torch.randn(2, 5, 24)
    k, v = attention.keys_values(text)
    torch.testing.assert_close(k.transpose(1, 2).flatten(2), text @ attention.to_k.weight.T)
    torch.testing.assert_close(v.transpose(1, 2).flatten(2), text @ attention.to_v.weight.T)


def test_feed_forward(twins, assert_same):
    ours, theirs = FeedForward(32), TheirFeedForward(32, activation_fn="geglu")
    twins(ours, theirs, 0)
    x = torch.randn(3, 7, 32)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("only_cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_transformer_block(only_cross, masked, twins, assert_same):
    ours = TransformerBlock(32, 24, 4, only_cross)
    theirs = BasicTransformerBlock(32, 4, 8, cross_attention_dim=24, only_cross_attention=only_cross)
    twins(ours, theirs, 0)
    x, text, bias = torch.randn(3, 20, 32), torch.randn(3, 7, 24), BIAS if masked else None
    mask = None if bias is None else bias[:, None]
    expected = theirs(x, encoder_hidden_states=text, encoder_attention_mask=bias)
    assert_same(ours(x, text, mask), expected)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 3)])
def test_transformer(linear, depth, size, twins, assert_same):
    config = UNetConfig(channels=(16, 32), heads=(2, 4), context_dim=24, linear_projection=linear, norm_groups=8)
    ours = Transformer(config, 1, depth, only_cross=False)
    theirs = Transformer2DModel(
        4, 8, 32, num_layers=depth, cross_attention_dim=24, norm_num_groups=8, use_linear_projection=linear
    )
    twins(ours, theirs, depth)
    x, text = torch.randn(3, 32, *size), torch.randn(3, 7, 24)
    assert_same(ours(x, text, None), theirs(x, encoder_hidden_states=text).sample)
