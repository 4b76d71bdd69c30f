"""Embeddings of numbers against diffusers'."""

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from diffusers.models.embeddings import TimestepEmbedding, Timesteps

from unet.embedding import TimeEmbedding, VectorEmbedding, guidance_sinusoid, sinusoid

TIMES = [torch.tensor([0, 1, 500, 999]), torch.tensor([0.0, 0.25, 998.5]), torch.tensor([7.0], dtype=torch.float64)]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("width", [2, 8, 256, 320])
def test_sinusoid_is_diffusers_to_the_bit(t, width):
    assert torch.equal(sinusoid(t, width), Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)(t))


@pytest.mark.parametrize("width", [4, 256])
def test_guidance_sinusoid_is_diffusers_to_the_bit(width):
    gamma = torch.tensor([0.0, 0.5, 6.5, 13.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, gamma, embedding_dim=width)
    assert torch.equal(guidance_sinusoid(gamma, width), theirs)


def test_vector_embedding(twins, assert_same):
    ours, theirs = VectorEmbedding(24, 48), TimestepEmbedding(24, 48)
    twins(ours, theirs, 0)
    vector = torch.randn(3, 24)
    assert_same(ours(vector), theirs(vector))


@pytest.mark.parametrize("guidance", [None, torch.tensor([0.5, 6.5, 7.0])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_time_embedding(guidance, dtype, twins):
    """To the bit in bfloat16 too: the sinusoid is computed in float32 and rounded once."""
    dim = 0 if guidance is None else 16
    ours, theirs = TimeEmbedding(24, 48, dim), TimestepEmbedding(24, 48, cond_proj_dim=dim or None)
    twins(ours, theirs, 0)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    t = torch.tensor([1.0, 500.0, 999.0])
    weight = None if guidance is None else guidance_sinusoid(guidance, dim).to(dtype)
    assert torch.equal(ours(t, guidance), theirs(sinusoid(t, 24).to(dtype), weight))
