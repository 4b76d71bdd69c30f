"""Adams methods: the past estimates, joined by a polynomial, are integrated over the next step.

They differ in what is interpolated and in the clock of the polynomial: `lms` the noise eps = (x - D) / sigma in sigma,
`deis` the same in log sigma, `unipc` the estimate D in log sigma, with a corrector; `pndm` the network's output as if
all steps were equal. Each step is an Euler step plus weighted differences to the newest value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import expm1, log

from torch import Tensor

from ldm.diffusion.prediction import PREDICTIONS, Level
from ldm.diffusion.samplers.step import Denoise, Noise, Step, euler_step, require, usable_order

EQUAL_STEPS = ((), (-1 / 2,), (-16 / 12, 5 / 12), (-59 / 24, 37 / 24, -9 / 24))  # Adams-Bashforth, for f_j - f_0


def lagrange_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """w with  integral of f = sum_j w_j f(nodes_j)  for polynomials f; moments_k is the integral of t^k.

    w_j is the integral of the polynomial that is 1 at node j and 0 at the others.
    """
    weights = []
    for j, node in enumerate(nodes):
        L = [1.0]  # coefficients, lowest power first
        for other in (*nodes[:j], *nodes[j + 1 :]):
            shifted, scaled = [0.0, *L], [*(other * c for c in L), 0.0]
            L = [(a - b) / (node - other) for a, b in zip(shifted, scaled, strict=True)]
        weights.append(sum(c * m for c, m in zip(L, moments, strict=True)))
    return weights


def weighted_differences(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor | float:
    """sum_j w_j (values_j - values_0), j = 1, 2, ...; the newest value is number 0."""
    return sum(w * (value - values[0]) for w, value in zip(weights, values[1:], strict=False))


def pndm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    prediction: str = "epsilon",
    midpoints: Sequence[float] = (),
) -> Iterator[Step]:
    """PNDM (Liu et al. 2202.09778, algorithm 2): Adams-Bashforth of order 4 as if the steps were equal.

    It starts with one step of Heun (PLMS, N + 1 evaluations; diffusers' skip_prk_steps), or, given the levels halfway
    through the first steps as `midpoints`, with that many Runge-Kutta steps of 4 evaluations (the paper's 3).
    prediction: what the network predicts; the method averages the network's outputs, so that eps and v differ.
    """
    coefficients = PREDICTIONS[prediction]

    def output(x: Tensor, sigma: float) -> Tensor:
        c_skip, c_out, _ = coefficients(sigma)
        return (denoise(x, sigma) - c_skip * x) / c_out

    past: list[Tensor] = []  # the network's outputs f, newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        c_skip, c_out, _ = coefficients(sigma)
        D = denoise(x, sigma)
        f = (D - c_skip * x) / c_out
        past = [f, *past[:3]]
        go = partial(transfer, x, D, c_out, sigma)
        if i < len(midpoints):
            f2 = output(go(midpoints[i], 0.0), midpoints[i]) - f
            f3 = output(go(midpoints[i], f2), midpoints[i]) - f
            f4 = output(go(sigma_next, f3), sigma_next) - f
            change: Tensor | float = (2 * f2 + 2 * f3 + f4) / 6
        elif i == 0 and len(sigmas) > 2:
            change = (output(go(sigma_next, 0.0), sigma_next) - f) / 2
        else:
            change = weighted_differences(EQUAL_STEPS[len(past) - 1], past)
        x = go(sigma_next, change)
        yield Step(i, sigma_next, x, D)


def transfer(x: Tensor, D: Tensor, c_out: Level, sigma: float, to: float, change: Tensor | float) -> Tensor:
    """The Euler step from x to level `to`, had the network's output differed by `change`."""
    return euler_step(x, D + c_out * change, sigma, to)


def lms(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, order: int = 4) -> Iterator[Step]:
    """Linear multistep: Adams-Bashforth on eps in sigma (k-diffusion), orders 1 to 4, N evaluations."""
    require("order", order, (1, 2, 3, 4))
    past: list[Tensor] = []  # eps, newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        past = [(x - D) / sigma, *past][:order]
        h = sigma_next - sigma
        nodes = [sigmas[i - j] - sigma for j in range(len(past))]
        _, *w = lagrange_weights(nodes, [h ** (k + 1) / (k + 1) for k in range(len(past))])
        x = euler_step(x, D, sigma, sigma_next) + weighted_differences(w, past)
        yield Step(i, sigma_next, x, D)


def deis(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """DEIS, tAB in log rho (Zhang and Chen 2204.13902), orders 1 to 3, N evaluations.

    With t = log(sigma / s) the integral of eps over the step is -sigma * integral of eps e^-t dt, t from 0 to h.
    lower_order_final: below 15 steps, end with orders 2 and 1.
    """
    require("order", order, (1, 2, 3))
    past: list[Tensor] = []  # eps, newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        past = [(x - D) / sigma, *past][:order]
        x = euler_step(x, D, sigma, sigma_next)
        p = usable_order(order, i, sigmas, taper=lower_order_final and len(sigmas) - 1 < 15)
        if p > 1:
            h, q = log(sigma / sigma_next), sigma_next / sigma
            M = [1 - q]  # integrals of t^k e^-t
            for k in range(1, p):
                M.append(k * M[-1] - h**k * q)
            _, *w = lagrange_weights([log(sigma / sigmas[i - j]) for j in range(p)], M)
            x = x - sigma * weighted_differences(w, past)
        yield Step(i, sigma_next, x, D)


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    solver_type: str = "bh2",
    lower_order_final: bool = True,
    disable_corrector: Collection[int] = (),
) -> Iterator[Step]:
    """UniPC for x0 prediction (Zhao et al. 2302.04867), orders 1 to 3, N evaluations.

    UniP-p predicts x at the next level; the estimate made there also serves UniC-p to correct it, a step later, so that
    the corrector costs nothing. It moves x by what it would have added: changes the caller made to x stay.
    solver_type: the paper's B(h), "bh1" = h or "bh2" = 1 - e^-h. It matters where one difference is used.
    lower_order_final: end with orders 2 and 1. Without it, and not going to 0, the observed order is one more.
    disable_corrector: indices of the steps whose prediction is not corrected.
    """
    require("order", order, (1, 2, 3))
    require("solver_type", solver_type, ("bh1", "bh2"))
    past: list[Tensor] = []  # D, newest first
    predictor: list[float] = []
    corrector: list[float] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        if corrector and i - 1 not in disable_corrector:
            *old, new = corrector
            change = [c - w for c, w in zip(old, predictor, strict=True)]
            x = x + new * (D - past[0]) + weighted_differences(change, past)
        past = [D, *past][:order]
        x = euler_step(x, D, sigma, sigma_next)
        p = usable_order(order, i, sigmas, taper=lower_order_final)
        predictor, corrector = [], []
        if 0 < sigma_next < sigma:
            h = log(sigma / sigma_next)
            r = [log(sigma / sigmas[i - k]) / h for k in range(1, p)]
            predictor, corrector = unipc_weights(r, h, solver_type), unipc_weights([*r, 1.0], h, solver_type)
            x = x + weighted_differences(predictor, past)
        yield Step(i, sigma_next, x, D)


def unipc_weights(r: Sequence[float], h: float, solver_type: str) -> list[float]:
    """Weights of D(lambda + r_k h) - D(lambda) in the step of length h in lambda.

    Two or more: those of the polynomial through the points, B(h) cancels (the paper's system R rho = b). A single one:
    the paper's shortcut rho = 1/2, so B(h) / 2r.
    """
    w = -expm1(-h)
    if len(r) == 1:
        return [(h if solver_type == "bh1" else w) / (2 * r[0])]
    N = [w]  # integrals of r^k h e^(-h (1 - r)), r from 0 to 1
    for k in range(1, len(r) + 1):
        N.append(1 - k / h * N[-1])
    return lagrange_weights([0.0, *r], N)[1:]
