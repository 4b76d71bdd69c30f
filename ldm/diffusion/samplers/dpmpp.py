"""DPM-Solver++ (Lu et al. 2211.01095): exponential integrators in lambda = -log sigma, with and without noise.

They integrate dx/dlambda = D - x exactly up to D, which they take to be a constant or a polynomial of lambda.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import expm1, log, sqrt

from torch import Tensor

from ldm.diffusion.samplers.step import Denoise, Noise, Step, ancestral, euler_step, require, usable_order


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    eta: float = 1.0,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Step]:
    """DPM++ 2M SDE: DPM-Solver++ multistep for the reverse SDE, N evaluations.

    order: 1, 2 or 3. The third-order update is its authors', whose second difference has half the weight of the
        quadratic it is fitted to: it improves the constant of the error, the observed order stays near 2.
    eta: 1 is the reverse SDE, 0 the ODE. With eta > 0 every step draws once, the last one too.
    solver_type: "midpoint" or "heun", two second-order expansions of the same integral.
    lower_order_final: below 15 steps, end with orders 2 and 1. A step to sigma 0 is of order 1 in any case.
    euler_at_final: the last step is of order 1.
    """
    require("order", order, (1, 2, 3))
    require("solver_type", solver_type, ("midpoint", "heun"))
    N = len(sigmas) - 1
    past: list[Tensor] = []  # D, newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        past = [denoise(x, sigma), *past[:2]]
        q = sigma_next / sigma  # e^-h
        x = q ** (1 + eta) * x + (1 - q ** (1 + eta)) * past[0]
        p = 1 if euler_at_final and i == N - 1 else usable_order(order, i, sigmas, taper=lower_order_final and N < 15)
        if p > 1:
            x = x + correction(past[:p], sigmas[i + 1 - p : i + 2], eta, solver_type)
        if eta > 0:
            x = x + sigma_next * sqrt(max(0.0, 1 - q ** (2 * eta))) * noise()
        yield Step(i, sigma_next, x, past[0])


def correction(past: Sequence[Tensor], sigmas: Sequence[float], eta: float, solver_type: str) -> Tensor:
    """What the past adds to a step of order p: `past` are p estimates, newest first, `sigmas` the last p + 1 levels."""
    *h_past, h = (log(a / b) for a, b in pairwise(sigmas))
    u = (1 + eta) * h
    phi_1 = -expm1(-u)
    phi_2 = 1 - phi_1 / u
    r0 = h_past[-1] / h
    D1_0 = (past[0] - past[1]) / r0
    if len(past) == 2:
        return (0.5 * phi_1 if solver_type == "midpoint" else phi_2) * D1_0
    r1 = h_past[-2] / h
    D1_1 = (past[1] - past[2]) / r1
    D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)
    D2 = (D1_0 - D1_1) / (r0 + r1)
    phi_3 = phi_2 / u - 0.5
    return phi_2 * D1 - phi_3 * D2


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Step]:
    """DPM++ 2M (algorithm 2 of the paper), order 2, N evaluations: `dpmpp_2m_sde` without noise, same options."""
    return dpmpp_2m_sde(
        denoise,
        x,
        sigmas,
        noise,
        order=order,
        eta=0.0,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
        euler_at_final=euler_at_final,
    )


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    eta: float = 1.0,
    solver_type: str = "heun",
    lower_order_final: bool = False,
) -> Iterator[Step]:
    """DPM++ 3M SDE (k-diffusion), N evaluations: `dpmpp_2m_sde` of order 3, same options.

    diffusers (0.42) gives the second difference the weight -phi_3 - 1 instead of -phi_3. That spoils the order; this
    sampler has the right weight and so differs from it.
    """
    return dpmpp_2m_sde(
        denoise, x, sigmas, noise, order=3, eta=eta, solver_type=solver_type, lower_order_final=lower_order_final
    )


def dpmpp_2s_a(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++(2S) (algorithm 1 of the paper, r = 1/2), ancestral as in k-diffusion; eta = 0 is the ODE.

    2 evaluations a step, 1 and no draw in a step to 0.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        if down > 0:
            middle = sqrt(sigma * down)
            D = denoise(euler_step(x, D, sigma, middle), middle)
        x = euler_step(x, D, sigma, down)
        if up > 0:
            x = x + up * s_noise * noise()
        yield Step(i, sigma_next, x, D)


def dpmpp_sde(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Step]:
    """DPM-Solver++ for the SDE, singlestep (k-diffusion, r = 1/2): `dpmpp_2s_a` with noise at the midpoint too.

    2 evaluations and 2 draws a step; 1 and none in a step to 0. Both draws of a step belong to one Brownian path over
    sigma, as those of k-diffusion's tree do: the noise of the whole step contains that of its first half.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        D = denoise(x, sigma)
        down, up = ancestral(sigma, sigma_next, eta)
        z: Tensor | float = 0.0
        if sigma_next > 0:
            middle = sqrt(sigma * sigma_next)
            middle_down, middle_up = ancestral(sigma, middle, eta)
            z = noise() if eta > 0 else 0.0
            D = denoise(euler_step(x, D, sigma, middle_down) + middle_up * s_noise * z, middle)
        x = euler_step(x, D, sigma, down)
        if up > 0:
            share = (sigma - middle) / (sigma - sigma_next)
            x = x + up * s_noise * (sqrt(share) * z + sqrt(1 - share) * noise())
        yield Step(i, sigma_next, x, D)
