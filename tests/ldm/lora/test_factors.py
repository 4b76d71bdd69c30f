"""Every kind of change against its definition, element by element in float64."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ldm.lora.factors import Factors, bias_change, weight_change


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)


def places(shape: Sequence[int]) -> itertools.product:
    return itertools.product(*map(range, shape))


def matrix(out: int, rank: int, into: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, a @ b), the product by its definition."""
    a, b = rand(out, rank, seed=seed), rand(rank, into, seed=seed + 1)
    product = torch.zeros(out, into, dtype=torch.float64)
    for i, j in places((out, into)):
        product[i, j] = sum(float(a[i, n]) * float(b[n, j]) for n in range(rank))
    return a, b, product


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (3, 3.0), (3, 1.0), (2, 7.5), (4, None)])
def test_lora_is_alpha_over_rank_times_up_down(rank: int, alpha: float | None) -> None:
    up, down, product = matrix(5, rank, 6)
    scale = 1.0 if alpha is None else alpha / rank
    close(weight_change(Factors({"up": up, "down": down}, alpha), rand(5, 6)), scale * product)


def test_lora_on_a_convolution_keeps_the_window() -> None:
    down, up = rand(2, 4, 3, 3), rand(5, 2, 1, 1)
    wanted = torch.zeros(5, 4, 3, 3, dtype=torch.float64)
    for o, i, k, m in places(wanted.shape):
        wanted[o, i, k, m] = 0.25 * sum(float(up[o, n, 0, 0]) * float(down[n, i, k, m]) for n in range(2))
    close(weight_change(Factors({"up": up, "down": down}, 0.5), rand(5, 4, 3, 3)), wanted)


def test_linear_factors_fit_a_pointwise_convolution_and_the_reverse() -> None:
    up, down, product = matrix(5, 2, 6)
    close(weight_change(Factors({"up": up, "down": down}), rand(5, 6, 1, 1)), product[:, :, None, None])
    pointwise = {"up": up[:, :, None, None], "down": down[:, :, None, None]}
    close(weight_change(Factors(pointwise), rand(5, 6)), product)


def tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """sum over n, m of out[n, o] core[n, m, k, l] into[m, i]"""
    made = torch.zeros(out.shape[1], into.shape[1], *core.shape[2:], dtype=torch.float64)
    for o, i, k, m in places(made.shape):
        terms = places(core.shape[:2])
        made[o, i, k, m] = sum(float(out[a, o]) * float(core[a, b, k, m]) * float(into[b, i]) for a, b in terms)
    return made


def test_locon_with_a_tucker_core_of_two_ranks() -> None:
    up, mid, down = rand(5, 2, 1, 1), rand(2, 3, 3, 3), rand(3, 4, 1, 1)
    wanted = 6 / 3 * tucker(mid, up[:, :, 0, 0].T, down[:, :, 0, 0])
    close(weight_change(Factors({"up": up, "mid": mid, "down": down}, 6.0), rand(5, 4, 3, 3)), wanted)


@pytest.mark.parametrize("window", [(), (3, 3)])
def test_loha_is_the_product_of_two_low_rank_matrices(window: tuple[int, ...]) -> None:
    columns = 4 * (9 if window else 1)
    a1, b1, one = matrix(5, 2, columns)
    a2, b2, two = matrix(5, 2, columns, seed=7)
    factors = Factors({"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}, 3.0)
    close(weight_change(factors, rand(5, 4, *window)), (1.5 * one * two).reshape(5, 4, *window))


def test_loha_with_cores() -> None:
    t1, t2 = rand(2, 2, 3, 3), rand(2, 2, 3, 3, seed=5)
    a1, a2, b1, b2 = rand(2, 5), rand(2, 5, seed=1), rand(2, 4), rand(2, 4, seed=2)
    tensors = {"hada_t1": t1, "hada_t2": t2, "hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    close(weight_change(Factors(tensors, 1.0), rand(5, 4, 3, 3)), 0.5 * tucker(t1, a1, b1) * tucker(t2, a2, b2))


def kron(one: Tensor, two: Tensor) -> Tensor:
    """(a, b) and (c, d, ...) -> (a c, b d, ...)"""
    (a, b), (c, d, *window) = one.shape, two.shape
    made = torch.zeros(a * c, b * d, *window, dtype=torch.float64)
    for i, j, k, m in places((a, b, c, d)):
        made[i * c + k, j * d + m] = one[i, j].double() * two[k, m].double()
    return made


def test_lokr_of_whole_factors_is_not_scaled() -> None:
    one, two = rand(2, 3), rand(4, 2, 3, 3)
    close(weight_change(Factors({"lokr_w1": one, "lokr_w2": two}, 5.0), rand(8, 6, 3, 3)), kron(one, two))


def test_lokr_scales_by_the_rank_of_what_is_factored() -> None:
    one, (a, b, two) = rand(2, 3), matrix(4, 2, 2)
    wanted = 5 / 2 * kron(one.double(), two)
    close(weight_change(Factors({"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}, 5.0), rand(8, 6)), wanted)
    a1, b1, one = matrix(2, 3, 3)
    wanted = 5 / 3 * kron(one, two)
    tensors = {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2": two.float()}
    close(weight_change(Factors(tensors, 5.0), rand(8, 6)), wanted)


def test_lokr_on_convolutions() -> None:
    one, a, b = rand(2, 3), rand(4, 2), rand(2, 2 * 9)
    two = (a.double() @ b.double()).reshape(4, 2, 3, 3)
    tensors = {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}
    close(weight_change(Factors(tensors, 2.0), rand(8, 6, 3, 3)), kron(one, two))
    core, a, b = rand(2, 2, 3, 3), rand(2, 4), rand(2, 2)
    tensors = {"lokr_w1": one, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    close(weight_change(Factors(tensors, 1.0), rand(8, 6, 3, 3)), 0.5 * kron(one, tucker(core, a, b)))


@pytest.mark.parametrize("window", [(), (3, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_dora_sets_the_norm_along_either_axis(axis: int, window: tuple[int, ...]) -> None:
    weight, down, up = rand(5, 4, *window), rand(2, 4, *window), rand(5, 2, *[1] * len(window))
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    magnitude = rand(*shape).abs() + 1
    tensors = {"up": up, "down": down, "dora_scale": magnitude}
    merged = weight.double() + weight_change(Factors(tensors, 1.0), weight).double()
    v = weight.double() + 0.5 * (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
    for i in range(weight.shape[axis]):
        row, direction = merged.select(axis, i), v.select(axis, i)
        torch.testing.assert_close(row, float(magnitude.flatten()[i]) * direction / direction.norm(), atol=1e-5, rtol=0)


def test_dora_leaves_a_row_of_zeros() -> None:
    weight = torch.zeros(2, 3)
    tensors = {"up": torch.zeros(2, 1), "down": torch.zeros(1, 3), "dora_scale": torch.ones(2, 1)}
    assert torch.equal(weight_change(Factors(tensors), weight), weight)


def test_full_differences_of_weight_and_bias_are_not_scaled() -> None:
    factors = Factors({"diff": rand(5, 4), "diff_b": rand(5)}, alpha=3.0)
    close(weight_change(factors, rand(5, 4)), rand(5, 4).double())
    close(bias_change(factors, rand(5)), rand(5).double())
    close(weight_change(Factors({"diff": rand(7)}), rand(7)), rand(7).double())  # of a norm


def test_kinds_add_up_and_a_bias_of_up_is_scaled() -> None:
    up, down, product = matrix(5, 2, 4)
    factors = Factors({"up": up, "down": down, "diff": rand(5, 4), "up_bias": rand(5)}, alpha=1.0)
    close(weight_change(factors, rand(5, 4)), 0.5 * product + rand(5, 4).double())
    close(bias_change(factors, rand(5)), 0.5 * rand(5).double())


def test_halves_are_multiplied_in_float32() -> None:
    up, down = rand(5, 64).half(), rand(64, 4).half()
    close(weight_change(Factors({"up": up, "down": down}), rand(5, 4).half()), up.double() @ down.double())
