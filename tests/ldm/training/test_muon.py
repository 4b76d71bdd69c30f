"""Muon against PyTorch's own, which takes matrices alone, and against the orthogonal matrix that it approaches."""

import pytest
import torch

from configs.training import OptimizerConfig
from ldm.training.muon import Muon, by_shape, orthogonal
from ldm.training.optimizers import optimizers
from ldm.training.stage import Player

RATE, DECAY = 0.02, 0.1


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_matrices_go_where_pytorch_takes_them(shape):
    ours, theirs = (torch.nn.Parameter(normal(*shape)) for _ in range(2))
    optimizer = Muon([ours], lr=RATE, weight_decay=DECAY)
    reference = torch.optim.Muon([theirs], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step in range(1, 5):
        ours.grad, theirs.grad = normal(*shape, seed=step), normal(*shape, seed=step)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=RATE * 0.01)
    assert (ours - normal(*shape)).abs().max() > RATE * 0.2


def test_a_kernel_is_the_matrix_of_its_outputs():
    kernel, matrix = torch.nn.Parameter(normal(8, 4, 3, 3)), torch.nn.Parameter(normal(8, 4, 3, 3).flatten(1))
    kernel.grad, matrix.grad = normal(8, 4, 3, 3, seed=1), normal(8, 4, 3, 3, seed=1).flatten(1)
    for p in (kernel, matrix):
        Muon([p]).step()
    assert torch.equal(kernel.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_orthogonal_is_near_the_polar_factor(shape):
    matrix = normal(*shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    near = orthogonal(matrix)
    singular = torch.linalg.svdvals(near)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    assert torch.cosine_similarity(near.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_a_gradient_of_zeros_moves_nothing_but_by_decay():
    p = torch.nn.Parameter(normal(6, 6))
    p.grad = torch.zeros(6, 6)
    Muon([p], lr=RATE, weight_decay=DECAY).step()
    torch.testing.assert_close(p.detach(), normal(6, 6) * (1 - RATE * DECAY))


def test_muon_is_for_what_lies_inside_a_network():
    network = torch.nn.ModuleDict(
        {
            "conv_in": torch.nn.Conv2d(2, 4, 3),
            "middle": torch.nn.Conv2d(4, 4, 3),
            "token_embedding": torch.nn.Embedding(5, 4),
        }
    )
    player = Player("network", network, rates={"middle": 0.5})
    adamw, muon = optimizers(player, OptimizerConfig(kind="muon", rate=1e-3, weight_decay=0.1))
    (group,) = muon.param_groups
    assert [p is network["middle"].weight for p in group["params"]] == [True]
    assert (group["factor"], group["lr"], group["weight_decay"]) == (0.5, 0.5e-3, 0.1)
    rest = [(p, group["weight_decay"]) for group in adamw.param_groups for p in group["params"]]
    assert sorted((p.ndim, decay) for p, decay in rest) == [(1, 0.0), (1, 0.0), (2, 0.1), (4, 0.1)]
    (alone,) = optimizers(player, OptimizerConfig())
    assert sum(len(group["params"]) for group in alone.param_groups) == 5


def test_matrices_of_one_shape_are_made_orthogonal_together():
    """As on a GPU: what comes of each is what came of it alone, in its own place."""
    shapes = [(24, 40), (40, 24), (24, 40), (7, 7), (24, 40)]
    matrices = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    for matrix, found in zip(matrices, by_shape(matrices), strict=True):
        torch.testing.assert_close(found, orthogonal(matrix), rtol=0, atol=0.02)  # bfloat16
