"""The noise a model was trained with: sigma = sqrt((1 - alpha_bar) / alpha_bar) at each training step."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from configs.architecture import DiffusionConfig

Level = TypeVar("Level", float, Tensor)

# A schedule with zero terminal SNR ends at sigma = infinity. Here, and nowhere else, that becomes a finite number:
CLAMPED_TERMINAL = (2.0**24 - 1) ** 0.5  # alpha_bar = 2^-24, where diffusers puts its Euler, DPM++ and UniPC schedulers
EXACT_TERMINAL = 2.0**24  # below float32 rounding against infinity, which its DDIM, DDPM, LCM and TCD schedulers use


class NoiseSchedule:
    """sigma as a function of the training step t in [0, train_steps - 1], and back.

    `training_sigmas` rises with t; its values are float32 numbers, computed in float32 as every diffusers scheduler
    does, because the checkpoints' users compare with those. Between training steps sigma is linear in t, while t is
    linear in ln sigma (k-diffusion's conventions): the two are inverse to each other on the training grid only.
    """

    def __init__(self, config: DiffusionConfig, *, terminal_sigma: float = CLAMPED_TERMINAL) -> None:
        self.config = config
        alpha_bar = torch.cumprod(1 - training_betas(config), dim=0)
        if config.zero_terminal_snr:  # before the root, whose last bit then is diffusers' on any processor
            alpha_bar[-1] = 1 / (1 + terminal_sigma**2)
        sigmas = ((1 - alpha_bar) / alpha_bar) ** 0.5  # (train_steps,)
        # Logs stay float32 too: diffusers cuts some times to whole numbers, and there the last bit decides.
        self._log_table = sigmas.double().log().float().double()
        self._table = sigmas.double()
        self.training_sigmas: tuple[float, ...] = tuple(self._table.tolist())
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def train_steps(self) -> int:
        return len(self.training_sigmas)

    def sigma(self, t: Level) -> Level:
        """The noise level at training step `t`, whole or fractional; held constant outside the grid."""
        if not isinstance(t, Tensor):
            return self._sigma(torch.tensor(t, dtype=torch.float64)).item()
        return self._sigma(t.double()).to(t.dtype if t.is_floating_point() else torch.float32)

    def time(self, sigma: Level) -> Level:
        """The training step of noise level `sigma`: exactly k for `training_sigmas[k]`, linear in ln sigma between."""
        if not isinstance(sigma, Tensor):
            return self._time(torch.tensor(sigma, dtype=torch.float64)).item()
        return self._time(sigma.double()).to(sigma.dtype)

    def interpolated_time(self, sigma: float) -> float:
        """`time` without its exactness on the training grid: what diffusers computes for the levels of a ramp."""
        return float(self._interpolated_time(torch.tensor(sigma, dtype=torch.float64)))

    def alpha(self, t: Level) -> Level:
        """The signal's factor a = 1 / sqrt(1 + sigma^2) in variance-preserving coordinates."""
        sigma = self.sigma(t)
        a: Level = (1 + sigma * sigma) ** -0.5
        return a

    def snr(self, t: Level) -> Level:
        """Signal-to-noise ratio a^2 / s^2 = 1 / sigma^2."""
        sigma = self.sigma(t)
        return 1 / (sigma * sigma)

    def logsnr(self, t: Level) -> Level:
        """ln(a^2 / s^2) = -2 ln sigma."""
        sigma = self.sigma(t)
        return -2 * (sigma.log() if isinstance(sigma, Tensor) else math.log(sigma))

    def draw(self, count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Noise levels of `count` training examples, (count,) float32: training steps drawn uniformly."""
        source = generator.device if generator is not None else "cpu"
        steps = torch.randint(self.train_steps, (count,), generator=generator, device=source)
        return self._table[steps.cpu()].float().to(device)

    def _sigma(self, t: Tensor) -> Tensor:
        table, _ = self._tables(t.device)
        t = t.clamp(0, self.train_steps - 1)
        low = t.long().clamp(max=self.train_steps - 2)
        return table[low] + (t - low) * (table[low + 1] - table[low])

    def _time(self, sigma: Tensor) -> Tensor:
        table, _ = self._tables(sigma.device)
        exact = torch.searchsorted(table, sigma).clamp(max=self.train_steps - 1)
        return torch.where(table[exact] == sigma, exact.double(), self._interpolated_time(sigma))

    def _interpolated_time(self, sigma: Tensor) -> Tensor:
        _, logs = self._tables(sigma.device)
        log_sigma = sigma.clamp(min=1e-10).log()
        low = (torch.searchsorted(logs, log_sigma, right=True) - 1).clamp(0, self.train_steps - 2)
        return low + ((log_sigma - logs[low]) / (logs[low + 1] - logs[low])).clamp(0, 1)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """sigma and ln sigma by training step, on the device: copied there once, for a copy waits for the device."""
        if device not in self._copies:
            self._copies[device] = (self._table.to(device), self._log_table.to(device))
        return self._copies[device]


def training_betas(config: DiffusionConfig) -> Tensor:
    """beta_t of the forward process, (train_steps,) float32."""
    if config.zero_terminal_snr:
        return _rescale_to_zero_terminal_snr(_betas(config))
    return _betas(config)


def _betas(config: DiffusionConfig) -> Tensor:
    steps, start, end = config.train_steps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        if len(config.trained_betas) != steps:
            raise ValueError(f"trained_betas has {len(config.trained_betas)} values for {steps} training steps")
        return torch.tensor(config.trained_betas, dtype=torch.float32)
    if config.beta_schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if config.beta_schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    if config.beta_schedule == "squaredcos_cap_v2":
        return torch.tensor([_cosine_beta(i, steps) for i in range(steps)], dtype=torch.float32)
    raise ValueError(
        f"unknown beta_schedule {config.beta_schedule!r}: use 'linear', 'scaled_linear' or 'squaredcos_cap_v2'"
    )


def _cosine_beta(step: int, steps: int) -> float:
    """Nichol and Dhariwal 2021 (2102.09672), equation 17, capped at 0.999."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return min(1 - alpha_bar((step + 1) / steps) / alpha_bar(step / steps), 0.999)


def _rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that its first value stays and its last is 0 (Lin et al. 2023, 2305.08891)."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alpha_bar = ((root - last) * (first / (first - last))) ** 2
    alphas = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alphas
