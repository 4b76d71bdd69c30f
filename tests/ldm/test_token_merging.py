"""Merging: who joins whom, what is averaged, and that every token comes back to its place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.token_merging import Merging, grouped, merged, places, unmerged
from unet.attention import Attention

CPU = torch.device("cpu")
SIZES = [(8, 8), (9, 13), (2, 2), (1, 1), (1, 7), (7, 1), (3, 2)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def windows(h: int, w: int) -> Tensor:
    """The window of 2 x 2 in which each token lies, (h * w,)."""
    return (torch.arange(h)[:, None] // 2 * (-(-w // 2)) + torch.arange(w) // 2).flatten()


def attention(d: int = 32, heads: int = 4) -> Attention:
    return Attention(d, d, heads).double().requires_grad_(False)


def merging(layer: Attention, share: float, size: tuple[int, int]) -> Merging:
    made = Merging(layer, share)
    made.size = size
    return made


@pytest.mark.parametrize("size", SIZES)
def test_one_token_of_each_window_stays(size: tuple[int, int]) -> None:
    stay, others = places(*size, CPU)
    assert sorted([*stay.tolist(), *others.tolist()]) == list(range(size[0] * size[1]))
    assert windows(*size)[stay].tolist() == list(range(-(-size[0] // 2) * -(-size[1] // 2)))
    assert torch.equal(places(*size, CPU)[0], stay)


def test_it_is_not_always_the_same_one_of_a_window() -> None:
    stay, _ = places(32, 32, CPU)
    corners = (stay // 32 % 2 * 2 + stay % 2).bincount(minlength=4)
    assert corners.min() > 32  # of 256 windows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_the_share_says_how_many_go(size: tuple[int, int], share: float) -> None:
    n = size[0] * size[1]
    stay, others = places(*size, CPU)
    groups, count = grouped(torch.randn(3, n, 16), stay, others, share)
    assert count == n - min(int(share * n), len(others))
    for row in groups:  # no group is empty, and the tokens that stay are in different ones
        assert row.unique().tolist() == list(range(count))
        assert row[stay].tolist() == list(range(len(stay)))


def test_the_likest_join_their_nearest() -> None:
    stay, others = places(6, 5, CPU)
    x = torch.randn(2, 30, 16)
    groups, count = grouped(x, stay, others, 0.4)
    for row, tokens in zip(groups, F.normalize(x, dim=-1), strict=True):
        likeness = tokens[others] @ tokens[stay].T
        order = likeness.amax(dim=1).argsort(descending=True)
        joined = {int(others[i]): int(likeness[i].argmax()) for i in order[:12]}
        assert {i: int(row[i]) for i in others.tolist() if row[i] < len(stay)} == joined
    assert count == 30 - 12


def test_a_group_is_averaged_and_every_token_gets_its_group() -> None:
    groups = torch.tensor([[0, 1, 1, 2, 1], [2, 2, 0, 1, 0]])
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    y = merged(x, groups, 3)
    expected = [[x[0, 0], x[0, [1, 2, 4]].mean(0), x[0, 3]], [x[1, [2, 4]].mean(0), x[1, 3], x[1, [0, 1]].mean(0)]]
    torch.testing.assert_close(y, torch.stack([torch.stack(row) for row in expected]))
    back = unmerged(y, groups)
    for b, i in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        assert torch.equal(back[b, i], y[b, groups[b, i]])


def test_large_groups_are_averaged_exactly_in_half_precision() -> None:
    x = torch.cat([torch.ones(1, 1000, 2), torch.zeros(1, 1000, 2)], dim=1).bfloat16()
    y = merged(x, torch.zeros(1, 2000, dtype=torch.int64), 1)
    assert y.dtype == torch.bfloat16
    assert y.tolist() == [[[0.5, 0.5]]]


@pytest.mark.parametrize("size", SIZES)
def test_without_a_share_it_is_attention(size: tuple[int, int]) -> None:
    layer, x = attention(), torch.randn(2, size[0] * size[1], 32, dtype=torch.float64)
    torch.testing.assert_close(merging(layer, 0.0, size)(x, x), layer(x, x))


@pytest.mark.parametrize("scattered", [False, True])
def test_windows_of_equal_tokens_lose_nothing(scattered: bool) -> None:
    """Each value four times: in its window, or anywhere, as long as one of the four stays."""
    h, w = 8, 12
    values = torch.randn(2, 24, 32, dtype=torch.float64)
    where = windows(h, w)
    if scattered:
        _, others = places(h, w, CPU)
        where[others] = where[others][torch.randperm(len(others))]
    x = values[:, where]
    layer = attention()
    torch.testing.assert_close(merging(layer, 0.75, (h, w))(x, x), layer(x, x))
    half = merging(layer, 0.5, (h, w))(x, x)
    assert all(torch.allclose(half[:, where == i], half[:, where == i][:, :1]) for i in range(24))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_a_picture_of_one_colour_loses_nothing(share: float) -> None:
    layer, x = attention(), torch.randn(2, 1, 32, dtype=torch.float64).expand(2, 63, 32)
    torch.testing.assert_close(merging(layer, share, (9, 7))(x, x), layer(x, x))


def test_pairs_of_equal_tokens_are_found_wherever_they_are() -> None:
    """Half of those that stay have their like elsewhere: with a share of just so many, these and no others join."""
    h, w = 8, 8
    stay, others = places(h, w, CPU)
    x = torch.randn(1, 64, 32)
    chosen = others[torch.randperm(48)[:16]]
    x[:, chosen] = x[:, stay[torch.randperm(16)]]
    groups, count = grouped(x, stay, others, 0.25)
    assert torch.equal(unmerged(merged(x, groups, count), groups), x)


def test_pictures_of_a_batch_are_merged_each_by_itself() -> None:
    layer, x = attention(), torch.randn(3, 35, 32, dtype=torch.float64)
    together = merging(layer, 0.5, (5, 7))(x, x)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], merging(layer, 0.5, (5, 7))(x[i : i + 1], x[i : i + 1]))


def test_another_size_has_places_of_its_own() -> None:
    layer, x = attention(), torch.randn(1, 24, 32, dtype=torch.float64)
    module = merging(layer, 0.5, (4, 6))
    module(x, x)
    module.size = (6, 4)
    torch.testing.assert_close(module(x, x), merging(layer, 0.5, (6, 4))(x, x))
    assert not torch.allclose(module(x, x), merging(layer, 0.5, (4, 6))(x, x))
