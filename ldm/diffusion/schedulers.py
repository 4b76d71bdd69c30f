"""diffusers' scheduler classes as data: the sampler, the grid and the defaults that each class name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from configs.architecture import DiffusionConfig
from ldm.diffusion.grid import Layout

Config = Mapping[str, Any]

# Conventions shared by families of classes
VARIANCE_PRESERVING = Layout(variance_preserving=True, whole=True, exact_terminal=True)
EULER = Layout()
MULTISTEP = Layout(variance_preserving=True, whole=True, spare=1, full_range=True, round_times="always")

LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
RAMPS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
RAMP_ENDS = {"sigma_min": None, "sigma_max": None}
DISTILLED = {"original_inference_steps": 50}
ORDERS = {"solver_order": 2, "lower_order_final": True}

UNCLIPPED = {"clip_sample": False}
UNTHRESHOLDED = {"thresholding": False}
NO_FLOW = {"use_flow_sigmas": False, "use_dynamic_shifting": False}

# Values that belong to another family, and what a class of this one takes them for
DPM_SOLVER_TYPES = {"solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}}
UNIPC_TYPES = {"solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}}

KINDS_BY_KEY = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}


@dataclass(frozen=True)
class Scheduler:
    """One diffusers class.

    Attributes:
        sampler: our sampler of the same method.
        layout: the conventions of its grid that no configuration changes.
        defaults: the keys it understands, with the value a missing key has.
        only: keys with the one value that is supported.
        replaced: by key, values that it replaces by its own, as diffusers does.
        options: its keys that are options of the sampler, with the sampler's name for them.
        betas: the defaults of beta_start, beta_end, beta_schedule.
    """

    sampler: str
    layout: Layout
    defaults: Mapping[str, Any]
    only: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    betas: tuple[float, float, str] = (0.0001, 0.02, "linear")


BETAS = ("beta_start", "beta_end", "beta_schedule")
MODERN_BETAS = (0.00085, 0.012, "linear")
DISTILLED_BETAS = (0.00085, 0.012, "scaled_linear")
_ORDER = {"solver_order": "order", "lower_order_final": "lower_order_final"}

SCHEDULERS: dict[str, Scheduler] = {
    "DDIMScheduler": Scheduler(
        "ddim", VARIANCE_PRESERVING, {**LEADING, "set_alpha_to_one": True}, {**UNCLIPPED, **UNTHRESHOLDED}
    ),
    "DDPMScheduler": Scheduler(
        "ddpm",
        VARIANCE_PRESERVING,
        {**LEADING, "variance_type": "fixed_small"},
        {**UNCLIPPED, **UNTHRESHOLDED},
        {"variance_type": "variance"},
    ),
    "PNDMScheduler": Scheduler(
        "pndm",
        VARIANCE_PRESERVING,
        {**LEADING, "set_alpha_to_one": False, "skip_prk_steps": False},
        options={"skip_prk_steps": "skip_prk_steps"},
    ),
    "EulerDiscreteScheduler": Scheduler(
        "euler",
        EULER,
        {**LINSPACE, **RAMPS, **RAMP_ENDS, "final_sigmas_type": "zero"},
        {"interpolation_type": "linear", "timestep_type": "discrete"},
    ),
    "EulerAncestralDiscreteScheduler": Scheduler("euler_a", EULER, LINSPACE),
    "HeunDiscreteScheduler": Scheduler("heun", EULER, {**LINSPACE, **RAMPS}, UNCLIPPED, betas=MODERN_BETAS),
    "KDPM2DiscreteScheduler": Scheduler(
        "dpm2", replace(EULER, round_times="always"), {**LINSPACE, **RAMPS}, betas=MODERN_BETAS
    ),
    "KDPM2AncestralDiscreteScheduler": Scheduler(
        "dpm2_a", replace(EULER, round_times="always"), {**LINSPACE, **RAMPS}, betas=MODERN_BETAS
    ),
    "LMSDiscreteScheduler": Scheduler("lms", EULER, {**LINSPACE, **RAMPS}),
    "DPMSolverSDEScheduler": Scheduler("dpmpp_sde", EULER, {**LINSPACE, **RAMPS}, betas=MODERN_BETAS),
    "DPMSolverMultistepScheduler": Scheduler(
        "dpmpp_2m",  # or dpmpp_2m_sde, by `algorithm_type`
        replace(MULTISTEP, round_times="unless_cosine"),
        {
            **LINSPACE,
            **RAMPS,
            **ORDERS,
            "use_lu_lambdas": False,
            "final_sigmas_type": "zero",
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "euler_at_final": False,
        },
        {**UNTHRESHOLDED, **NO_FLOW, "lambda_min_clipped": -float("inf"), "variance_type": None},
        {**_ORDER, "solver_type": "solver_type", "euler_at_final": "euler_at_final"},
        {**DPM_SOLVER_TYPES, "algorithm_type": {"deis": "dpmsolver++"}},
    ),
    "DEISMultistepScheduler": Scheduler(
        "deis",
        replace(MULTISTEP, last="sigma_min"),
        {**LINSPACE, **RAMPS, **ORDERS},
        {**UNTHRESHOLDED, **NO_FLOW},
        _ORDER,
    ),
    "UniPCMultistepScheduler": Scheduler(
        "unipc",
        MULTISTEP,
        {**LINSPACE, **RAMPS, **ORDERS, "final_sigmas_type": "zero", "solver_type": "bh2", "disable_corrector": ()},
        {**UNTHRESHOLDED, **NO_FLOW, **RAMP_ENDS, "predict_x0": True, "solver_p": None},
        {**_ORDER, "solver_type": "solver_type", "disable_corrector": "disable_corrector"},
        UNIPC_TYPES,
    ),
    "LCMScheduler": Scheduler(
        "lcm",
        VARIANCE_PRESERVING,
        {**DISTILLED, "timestep_scaling": 10.0},
        {**UNCLIPPED, **UNTHRESHOLDED},
        {"timestep_scaling": "timestep_scaling"},
        betas=DISTILLED_BETAS,
    ),
    "TCDScheduler": Scheduler(
        "tcd",
        replace(VARIANCE_PRESERVING, last="sigma_min"),
        DISTILLED,
        {**UNCLIPPED, **UNTHRESHOLDED},
        betas=DISTILLED_BETAS,
    ),
}


def read_values(scheduler: Scheduler, config: Config) -> dict[str, Any]:
    """The keys that the class understands, from `config` or by default. Others are ignored, as diffusers does."""
    for key, value in scheduler.only.items():
        if config.get(key, value) != value:
            raise ValueError(f"the scheduler option {key}={config[key]!r} is not supported: set it to {value!r}")
    values = {key: config.get(key, default) for key, default in scheduler.defaults.items()}
    for key, foreign in scheduler.replaced.items():
        values[key] = foreign.get(values[key], values[key])
    return values


def read_layout(layout: Layout, values: Config) -> Layout:
    """`layout` with what the configuration says about the grid."""
    ramps = [kind for key, kind in KINDS_BY_KEY.items() if values.get(key)]
    if len(ramps) > 1:
        raise ValueError(f"only one of {', '.join(KINDS_BY_KEY)} can be true, not {len(ramps)}")
    return replace(
        layout,
        spacing=values.get("timestep_spacing", layout.spacing),
        offset=values.get("steps_offset", 0),
        kind=ramps[0] if ramps else "plain",
        last=_last(layout, values),
        sigma_min=values.get("sigma_min"),
        sigma_max=values.get("sigma_max"),
        original_steps=values.get("original_inference_steps", 0),
    )


def _last(layout: Layout, values: Config) -> Literal["zero", "sigma_min"]:
    final = values.get("final_sigmas_type", layout.last)
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type={final!r} is not supported: use 'zero' or 'sigma_min'")
    return "sigma_min" if final == "sigma_min" or values.get("set_alpha_to_one") is False else "zero"


def diffusion_from_scheduler_config(config: Config) -> DiffusionConfig:
    """The noise process that a `scheduler_config.json` describes, missing keys by the defaults of its class.

    The class may be one that cannot be sampled with here, as long as its betas are given: a sampler can be named then.

    Raises:
        ValueError: a beta schedule or prediction type that this package does not know, or a class without its betas.
    """
    betas = {key: config[key] for key in BETAS if key in config}
    if len(betas) < len(BETAS):
        betas = {**dict(zip(BETAS, scheduler_class(config).betas, strict=True)), **betas}
    prediction = config.get("prediction_type", "epsilon")
    prediction = "sample" if prediction == "original_sample" else prediction
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction_type={prediction!r} is not supported: use 'epsilon', 'v_prediction' or 'sample'")
    trained = config.get("trained_betas")
    return DiffusionConfig(
        train_steps=config.get("num_train_timesteps", 1000),
        trained_betas=None if trained is None else tuple(float(beta) for beta in trained),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        prediction=prediction,
        **betas,
    )


def scheduler_class(config: Config) -> Scheduler:
    """The entry of SCHEDULERS that `_class_name` names."""
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"the scheduler {name!r} is not supported: use one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name]
