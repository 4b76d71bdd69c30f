"""Names of samplers, as people write them, and `scheduler_config.json`, to a sampler with its grid."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.grid import KINDS, Grid, Layout
from ldm.diffusion.samplers import SAMPLERS, Denoise, Noise, Step
from ldm.diffusion.schedule import NoiseSchedule
from ldm.diffusion.schedulers import (
    EULER,
    KINDS_BY_KEY,
    LINSPACE,
    RAMPS,
    SCHEDULERS,
    Config,
    Scheduler,
    read_layout,
    read_values,
    scheduler_class,
)

_SDE = {"algorithm_type": "sde-dpmsolver++"}

# Canonical name: the class whose grid and keys it uses, and the values that make the class this sampler.
NAMES: dict[str, tuple[Scheduler, Mapping[str, Any]]] = {
    **{scheduler.sampler: (scheduler, {}) for scheduler in SCHEDULERS.values()},
    "pndm": (SCHEDULERS["PNDMScheduler"], {"skip_prk_steps": True}),
    "dpmpp_2m": (SCHEDULERS["DPMSolverMultistepScheduler"], {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": (SCHEDULERS["DPMSolverMultistepScheduler"], _SDE),
    # k-diffusion's, without a class of their own in diffusers
    "dpmpp_3m_sde": (replace(SCHEDULERS["DPMSolverMultistepScheduler"], sampler="dpmpp_3m_sde", options={}), {}),
    "dpmpp_2s_a": (Scheduler("dpmpp_2s_a", EULER, {**LINSPACE, **RAMPS}), {}),
}

# Other spellings; case, spaces, underscores and hyphens do not count, and "++" is "pp".
ALIASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in NAMES},
    **{
        alias: (name, {})
        for alias, name in {
            "PLMS": "pndm",
            "Euler ancestral": "euler_a",
            "DPM2 ancestral": "dpm2_a",
            "DPM++ 2S ancestral": "dpmpp_2s_a",
            "UniPC bh2": "unipc",
        }.items()
    },
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "UniPC bh1": ("unipc", {"solver_type": "bh1"}),
}
GRID_SUFFIXES = {
    "karras": "karras",
    "exponential": "exponential",
    "beta": "beta",
    "lu": "lu",
    "alignyoursteps": "ays",
    "ays": "ays",
    "ayssdxl": "ays_sdxl",
}


@dataclass(frozen=True)
class Sampling:
    """How to sample: a sampler with its options, on a grid. The noise process itself belongs to the model.

    Values come from `from_name` and `from_scheduler_config`; `with_options` changes the sampler's keywords.
    """

    sampler: str
    layout: Layout
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_name(cls, name: str, scheduler_config: Config | None = None) -> Sampling:
        """The sampler called `name`, on the grid of the model whose scheduler configuration is given.

        `name` is canonical ("dpmpp_2m", "euler_a"), a diffusers class, or as in A1111 and ComfyUI, with the grid
        after it ("DPM++ 2M Karras", "Euler a", "DPM++ 2M SDE Exponential", "dpmpp_2m ays_sdxl").
        As with diffusers' `X.from_config(pipe.scheduler.config)`, keys in the file are kept and missing ones take the
        defaults of the named class. Zero terminal SNR stays for every sampler: it belongs to the noise process.

        Raises:
            ValueError: no such sampler, naming the nearest, or an unsupported value in the configuration.
        """
        config = {**(scheduler_config or {})}
        for key in config.pop("_use_default_values", ()):
            config.pop(key, None)
        by_class = _BY_CLASS.get(_compact(name))
        if by_class is not None:
            return _build(by_class, config)
        canonical, overrides, kind = _parse(name)
        scheduler, values = NAMES[canonical]
        if kind is not None:
            overrides = {**overrides, **dict.fromkeys(KINDS_BY_KEY, False)}
        sampling = _build(scheduler, {**config, **values, **overrides})
        return sampling if kind is None else replace(sampling, layout=replace(sampling.layout, kind=kind))

    @classmethod
    def from_scheduler_config(cls, config: Config) -> Sampling:
        """The sampler and grid that a `scheduler_config.json` of diffusers describes."""
        return _build(scheduler_class(config), config)

    def __str__(self) -> str:
        """A name that `from_name` reads: "dpmpp_2m karras"."""
        return self.sampler if self.layout.kind == "plain" else f"{self.sampler} {self.layout.kind}"

    def accepts(self, option: str) -> bool:
        """Whether the sampler has this option, for example "eta"."""
        return option in self._known_options()

    def with_options(self, **options: Any) -> Sampling:
        """The same with other options of the sampler; ValueError names one that it does not have."""
        for name in options:
            if not self.accepts(name):
                known = ", ".join(sorted(self._known_options())) or "none"
                raise ValueError(f"the sampler {self.sampler} has no option {name!r}; it has {known}")
        return replace(self, options={**self.options, **options})

    def with_grid(self, name: str) -> Sampling:
        """The same on noise levels of another kind ("karras", "exponential", ...); ValueError names those there are."""
        kind = {**GRID_SUFFIXES, "plain": "plain"}.get(_compact(name))
        if kind is None:
            raise ValueError(f"unknown grid {name!r}: use one of {', '.join(KINDS)}")
        return replace(self, layout=replace(self.layout, kind=kind))

    def grid(
        self,
        schedule: NoiseSchedule,
        steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Grid:
        """The noise levels of a run; see `Layout.grid`."""
        return self.layout.grid(schedule, steps, timesteps=timesteps, sigmas=sigmas)

    def run(self, denoise: Denoise, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from the state x = x0 + grid.sigmas[0] * noise (b,c,h,w) float32, step by step."""
        supply = SUPPLIES.get(self.sampler)
        options = dict(self.options) if supply is None else supply(grid, self.options)
        return SAMPLERS[self.sampler](denoise, x, grid.sigmas, noise, **options)

    def _known_options(self) -> set[str]:
        parameters = inspect.signature(SAMPLERS[self.sampler]).parameters.values()
        own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"times", "targets", "prediction", "midpoints"}
        return own | {"tcd": {"eta"}, "pndm": {"skip_prk_steps"}}.get(self.sampler, set())


def _build(scheduler: Scheduler, config: Config) -> Sampling:
    values = read_values(scheduler, config)
    sampler = scheduler.sampler
    if sampler == "dpmpp_2m":
        sampler = _dpm_solver(values["algorithm_type"])
    options = {ours: values[theirs] for theirs, ours in scheduler.options.items()}
    return Sampling(sampler, read_layout(scheduler.layout, values), options)


def _dpm_solver(algorithm: str) -> str:
    """DPMSolverMultistepScheduler is two samplers."""
    algorithms = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
    if algorithm not in algorithms:
        raise ValueError(f"algorithm_type={algorithm!r} is not supported: use 'dpmsolver++' or 'sde-dpmsolver++'")
    return algorithms[algorithm]


# What some samplers need to know beside the noise levels


def _times(grid: Grid, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**options, "times": grid.times}


def _trajectory_targets(grid: Grid, options: Mapping[str, Any]) -> dict[str, Any]:
    """TCD jumps to s = floor((1 - eta) t_next); `eta` is the paper's gamma, 0 by default as in diffusers' pipelines."""
    rest = dict(options)
    eta = rest.pop("eta", 0.0)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta of TCD must lie between 0 and 1, not {eta}")
    times = torch.floor((1 - eta) * torch.tensor([*grid.times[1:], 0.0]))
    levels = grid.schedule.sigma(times.double()).tolist()
    return {**rest, "targets": [min(level, to) for level, to in zip(levels, grid.sigmas[1:], strict=True)]}


def _pseudo_linear(grid: Grid, options: Mapping[str, Any]) -> dict[str, Any]:
    """PNDM averages network outputs; without skip_prk_steps its first three steps are Runge-Kutta's."""
    rest = dict(options)
    supplied = {**rest, "prediction": grid.schedule.config.prediction}
    if supplied.pop("skip_prk_steps", True):
        return supplied
    halves = [t - (t - after) // 2 for t, after in zip(grid.times, grid.times[1:4], strict=False)]
    return {**supplied, "midpoints": [grid.schedule.sigma(t) for t in halves]}


SUPPLIES: dict[str, Callable[[Grid, Mapping[str, Any]], dict[str, Any]]] = {
    "ddpm": _times,
    "lcm": _times,
    "tcd": _trajectory_targets,
    "pndm": _pseudo_linear,
}


def _compact(name: str) -> str:
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())


_BY_CLASS = {_compact(name): scheduler for name, scheduler in SCHEDULERS.items()}
_BY_ALIAS = {_compact(alias): meaning for alias, meaning in ALIASES.items()}


def _parse(name: str) -> tuple[str, Mapping[str, Any], str | None]:
    """(canonical name, values it sets, kind of grid or None)."""
    compact = _compact(name)
    if compact in _BY_ALIAS:
        return *_BY_ALIAS[compact], None
    for suffix, kind in GRID_SUFFIXES.items():
        stem = compact.removesuffix(suffix)
        if stem != compact and stem in _BY_ALIAS:
            return *_BY_ALIAS[stem], kind
    known = {_compact(known): known for known in (*ALIASES, *SCHEDULERS)}
    nearest = difflib.get_close_matches(compact, known, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown sampler {name!r}: did you mean {known[nearest]!r}? There are {', '.join(NAMES)}")
