"""The noise levels of one run and the network's time at each, exactly as the checkpoint's scheduler lays them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ldm.diffusion.schedule import EXACT_TERMINAL, Level, NoiseSchedule
from ldm.diffusion.spacing import AYS_TIMES, distilled_times, log_interpolate, ramp, spaced_times

KINDS = ("plain", "karras", "exponential", "beta", "lu", *AYS_TIMES)


@dataclass(frozen=True)
class Grid:
    """Where a sampler goes.

    Attributes:
        sigmas: steps + 1 falling noise levels, float32 numbers.
        times: the network's time at each of the first `steps`.
        init_scale: a run from pure noise starts at x = init_scale * noise.
        variance_preserving: the scheduler holds x / sqrt(1 + sigma^2), not x (`outside`).
    """

    sigmas: tuple[float, ...]
    times: tuple[float, ...]
    init_scale: float
    variance_preserving: bool
    schedule: NoiseSchedule = field(repr=False, compare=False)

    @property
    def steps(self) -> int:
        return len(self.times)

    def time(self, sigma: Level) -> Level:
        """The network's time at `sigma`: the grid's own where it is one of its levels, else the schedule's."""
        if isinstance(sigma, Tensor):
            return self.schedule.time(sigma)
        known = self._time_of.get(sigma)
        return self.schedule.time(sigma) if known is None else known

    def skip(self, count: int) -> Grid:
        """The grid without its first `count` steps: image to image starts at x = z + sigmas[0] * noise."""
        return replace(self, sigmas=self.sigmas[count:], times=self.times[count:])

    def outside(self, x: Tensor, sigma: float) -> Tensor:
        """The state as its scheduler holds it: x / sqrt(1 + sigma^2) where variance is preserved, else x itself."""
        return x / (1 + sigma**2) ** 0.5 if self.variance_preserving else x

    def inside(self, x: Tensor, sigma: float) -> Tensor:
        """The inverse of `outside`."""
        return x * (1 + sigma**2) ** 0.5 if self.variance_preserving else x

    @cached_property
    def _time_of(self) -> dict[float, float]:
        return dict(zip(self.sigmas, self.times, strict=False))


@dataclass(frozen=True)
class Layout:
    """How a scheduler lays its grid: what its configuration says, then the conventions of its family.

    Attributes:
        spacing, offset: `timestep_spacing` and `steps_offset` of diffusers.
        kind: one of KINDS. "ays" and "ays_sdxl" are Align Your Steps; "lu" is exponential with whole times.
        last: the last noise level, 0 or that of training step 0.
        sigma_min, sigma_max: ends of a ramp; None means those of the family.
        original_steps: for distilled models, the steps they were distilled on; 0 for all others.
        variance_preserving: the scheduler's states are x / sqrt(1 + sigma^2) (DDIM, DDPM, PNDM, DPM++, ...).
        whole: times are whole numbers; those of a ramp are cut, not rounded.
        spare: 1 if one point more is spaced and the lowest dropped.
        full_range: a ramp spans all training levels, not only the spaced ones.
        round_times: whether the times of "karras" and "lu" ramps are rounded ("unless_cosine": not on that schedule).
        exact_terminal: zero-terminal-SNR models start at infinity rather than at sigma = 4096.

    diffusers' DDIM and PNDM step to t - train_steps // steps instead of to their next time: on "linspace", and on
    "trailing" where the steps do not divide the training steps, they leave their own grid; with as many steps as
    training steps they may not reach its end. This one does not follow.
    """

    spacing: str = "leading"
    offset: int = 0
    kind: str = "plain"
    last: Literal["zero", "sigma_min"] = "zero"
    sigma_min: float | None = None
    sigma_max: float | None = None
    original_steps: int = 0
    variance_preserving: bool = False
    whole: bool = False
    spare: int = 0
    full_range: bool = False
    round_times: Literal["never", "always", "unless_cosine"] = "never"
    exact_terminal: bool = False

    def grid(
        self,
        schedule: NoiseSchedule,
        steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Grid:
        """The grid of a run of `steps` steps, or through `timesteps`, or through `sigmas` (the last one included).

        Raises:
            ValueError: not exactly one of the three is given, or it does not make a falling grid on this schedule.
        """
        if sum(given is not None for given in (steps, timesteps, sigmas)) != 1:
            raise ValueError("give exactly one of the number of steps, timesteps and sigmas")
        if self.exact_terminal and schedule.config.zero_terminal_snr:
            schedule = NoiseSchedule(schedule.config, terminal_sigma=EXACT_TERMINAL)
        if sigmas is not None:
            if len(sigmas) < 2:
                raise ValueError("sigmas must hold a level to start from and a last one, for example [14.6, 0.0]")
            return self._finished(schedule, [schedule.time(s) for s in sigmas[:-1]], _falling("sigmas", sigmas))
        if timesteps is not None:
            levels, times = self._through(schedule, timesteps)
        else:
            assert steps is not None
            levels, times = self._laid(schedule, steps)
        last = 0.0 if self.last == "zero" else schedule.training_sigmas[0]
        return self._finished(schedule, times, [*levels, last])

    def _through(self, schedule: NoiseSchedule, timesteps: Sequence[float]) -> tuple[list[float], list[float]]:
        if self.kind != "plain":
            raise ValueError(f"timesteps= cannot be combined with a {self.kind} grid: choose a sampler without it")
        times = [float(t) for t in _falling("timesteps", timesteps)]
        if not times or not 0 <= times[-1] <= times[0] <= schedule.train_steps - 1:
            raise ValueError(f"timesteps must lie between 0 and {schedule.train_steps - 1}")
        if self.whole:
            times = [float(int(t)) for t in times]
        return [schedule.sigma(t) for t in times], times

    def _laid(self, schedule: NoiseSchedule, steps: int) -> tuple[list[float], list[float]]:
        """Noise levels and times of `steps` steps."""
        if not 1 <= steps <= schedule.train_steps:
            raise ValueError(f"the number of steps must be between 1 and {schedule.train_steps}, not {steps}")
        if self.kind in AYS_TIMES:
            return self._align_your_steps(schedule, steps)
        if self.kind == "plain":
            times = self._spaced(schedule, steps)
            return [schedule.sigma(t) for t in times], times
        if self.full_range:
            ends = schedule.training_sigmas[::-1]
        else:
            ends = tuple(schedule.sigma(t) for t in self._spaced(schedule, steps))
        high = ends[0] if self.sigma_max is None else self.sigma_max
        low = ends[-1] if self.sigma_min is None else self.sigma_min
        levels = ramp(self.kind, high, low, steps)
        return levels, self._ramp_times(schedule, levels)

    def _spaced(self, schedule: NoiseSchedule, steps: int) -> list[float]:
        if self.original_steps:
            return distilled_times(steps, schedule.train_steps, self.original_steps)
        times = spaced_times(self.spacing, steps, schedule.train_steps, offset=self.offset, spare=self.spare)
        return [float(round(t)) for t in times] if self.whole else _float32(times)

    def _ramp_times(self, schedule: NoiseSchedule, levels: Sequence[float]) -> list[float]:
        times = [schedule.interpolated_time(level) for level in levels]
        cosine = schedule.config.beta_schedule == "squaredcos_cap_v2"
        rounds = self.round_times == "always" or (self.round_times == "unless_cosine" and not cosine)
        if rounds and self.kind in ("karras", "lu"):
            return [float(round(t)) for t in times]
        return [float(int(t)) for t in times] if self.whole else times

    def _align_your_steps(self, schedule: NoiseSchedule, steps: int) -> tuple[list[float], list[float]]:
        """The published times for ten steps; for other counts the curve through their noise levels."""
        times = [float(t) for t in AYS_TIMES[self.kind]]
        levels = [schedule.sigma(t) for t in times]
        if steps == len(times):
            return levels, times
        levels = log_interpolate([*levels, schedule.training_sigmas[0]], steps + 1)[:-1]
        times = [schedule.time(level) for level in levels]
        return levels, [float(round(t)) for t in times] if self.whole else times

    def _finished(self, schedule: NoiseSchedule, times: Sequence[float], sigmas: Sequence[float]) -> Grid:
        levels = _float32(sigmas)
        # Edge: diffusers starts its Euler family at sigma * noise, except on leading grids
        unit_start = self.variance_preserving or self.spacing == "leading"
        start = math.sqrt(1 + levels[0] ** 2) if unit_start else levels[0]
        return Grid(tuple(levels), tuple(_float32(times)), start, self.variance_preserving, schedule)


def _float32(values: Sequence[float]) -> list[float]:
    result: list[float] = torch.tensor(values, dtype=torch.float32).tolist()
    return result


def _falling(name: str, values: Sequence[float]) -> Sequence[float]:
    if not all(a > b for a, b in pairwise(values)) or not all(0 <= v < math.inf for v in values) or len(values) < 1:
        raise ValueError(f"{name} must be finite, not negative, and fall from each to the next")
    return values
