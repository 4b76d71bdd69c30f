"""A scheduler object of diffusers, or one like it, in the place of a `Sampling`."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from ldm.diffusion.grid import Grid
from ldm.diffusion.prediction import PREDICTIONS, Prediction
from ldm.diffusion.samplers import Denoise, Noise, Step
from ldm.diffusion.schedule import NoiseSchedule


class Scheduler(Protocol):
    """What is used of a diffusers scheduler."""

    config: Any
    timesteps: Tensor
    init_noise_sigma: Any

    def set_timesteps(self, *args: Any, **kwargs: Any) -> Any: ...

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor: ...

    def step(self, *args: Any, **kwargs: Any) -> Any: ...


def is_scheduler(value: object) -> TypeGuard[Scheduler]:
    """Whether `value` has the methods of a diffusers scheduler."""
    return all(hasattr(value, name) for name in ("set_timesteps", "step", "timesteps", "scale_model_input", "config"))


class ForeignSampling:
    """A scheduler driven through `grid` and `run`, with the result of diffusers' own loop to float32 rounding.

    The scheduler sees the states and network outputs of its own coordinates and prediction type; callers see
    x = x0 + sigma * noise and estimates of x0. It yields a step for each of the scheduler's (two for a step of Heun).
    Where its times are rounded, `sigma` is the level of the rounded time: the network's input and output are exact all
    the same, since both conversions use that level. Noise is drawn from the generators of the `noise` of a run.

    Args:
        scheduler: with `alphas_cumprod` behind it (DDIM, Euler, DPM++, ...), not one for flow matching or EDM.
        options: keywords of its `step`, such as eta.
    """

    def __init__(self, scheduler: Scheduler, **options: Any) -> None:
        self.scheduler = copy.deepcopy(scheduler)  # it counts its steps: the caller's stays as it is
        self.options = options
        self._request: dict[str, Any] = {}
        self._accepted = frozenset(inspect.signature(scheduler.step).parameters)

    def __str__(self) -> str:
        return type(self.scheduler).__name__

    def accepts(self, option: str) -> bool:
        """Whether the scheduler's `step` has this keyword, for example "eta"."""
        return option in self._accepted

    def with_options(self, **options: Any) -> ForeignSampling:
        """The same with other keywords of `step`; ValueError names one that it does not have."""
        for name in options:
            if not self.accepts(name):
                raise ValueError(f"the step of {type(self.scheduler).__name__} has no option {name!r}")
        return ForeignSampling(self.scheduler, **{**self.options, **options})

    def grid(
        self,
        schedule: NoiseSchedule,
        steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Grid:
        """The scheduler's own timesteps and their noise levels on `schedule`; the last level is 0.

        Raises:
            ValueError: not exactly one of the three is given, or the scheduler does not take it.
        """
        given = {"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas}
        self._request = {name: value for name, value in given.items() if value is not None}
        if len(self._request) != 1:
            raise ValueError("give exactly one of the number of steps, timesteps and sigmas")
        (name,) = self._request
        if name not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(f"{type(self.scheduler).__name__} does not take {name}: give the number of steps")
        self.scheduler.set_timesteps(**self._request)
        times = [float(t) for t in self.scheduler.timesteps]
        if self._prediction_type() not in PREDICTIONS or not 0 <= min(times) <= max(times) <= schedule.train_steps:
            raise ValueError(f"{type(self.scheduler).__name__} has no noise schedule of this model's kind")
        levels = [schedule.sigma(t) for t in times]
        start = self._scale(self.scheduler.timesteps[0], levels[0]) * float(self.scheduler.init_noise_sigma)
        preserving = self._to_input(self.scheduler.timesteps[0]) == 1
        return Grid((*levels, 0.0), tuple(times), start, preserving, schedule)

    def run(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from the state x (b,c,h,w) float32 at grid.sigmas[0], on a grid of this object."""
        scheduler, prediction = self.scheduler, self._prediction()
        times = self._restart(grid.steps)
        keywords = {**self.options}
        if self.accepts("generator"):
            keywords["generator"] = getattr(noise, "generators", None)
        scale = self._scale(times[0], grid.sigmas[0])
        for i, t in enumerate(times):
            sigma = grid.sigmas[i]
            x0 = denoise(x, sigma)
            c_skip, c_out, _ = prediction(sigma)
            output = ((x0 - c_skip * x) / c_out).to(getattr(noise, "dtype", x.dtype))  # the dtype it draws noise in
            native = scheduler.step(output, t, x / scale, **keywords, return_dict=False)[0]
            scale = self._scale(times[i + 1], grid.sigmas[i + 1]) if i + 1 < len(times) else 1.0
            x = native * scale
            yield Step(i, grid.sigmas[i + 1], x, x0)

    def _restart(self, steps: int) -> Tensor:
        """The last `steps` timesteps, with the scheduler at the first of them and nothing remembered."""
        self.scheduler.set_timesteps(**self._request)
        begin = len(self.scheduler.timesteps) - steps
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        return self.scheduler.timesteps[begin:]

    def _scale(self, t: Tensor, sigma: float) -> float:
        """Our state divided by the scheduler's. The network's input, x / sqrt(1 + sigma^2), is what both agree on."""
        return math.sqrt(1 + sigma**2) * self._to_input(t)

    def _to_input(self, t: Tensor) -> float:
        return float(self.scheduler.scale_model_input(torch.ones((), dtype=torch.float64), t))

    def _prediction_type(self) -> str | None:
        name = getattr(self.scheduler.config, "prediction_type", None)
        return "sample" if name == "original_sample" else name

    def _prediction(self) -> Prediction:
        name = self._prediction_type()
        assert name is not None
        return PREDICTIONS[name]
