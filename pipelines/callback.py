"""diffusers' protocol for `callback_on_step_end`: it sees tensors by name and returns those to replace."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.diffusion.samplers import Step
from pipelines.problem import CONDITIONS, Problem
from pipelines.request import TextToImageRequest

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline


def wanted(request: TextToImageRequest) -> Sequence[str]:
    """The tensors a callback wants to see: what it says itself, as diffusers' callback objects do, or the request."""
    own: Sequence[str] = getattr(request.callback_on_step_end, "tensor_inputs", None) or ()
    return own or request.callback_on_step_end_tensor_inputs


def check_names(request: TextToImageRequest, problem: Problem) -> None:
    """Raises ValueError when the callback wants tensors that this model does not have."""
    known = {"latents", *problem.conditions()}
    if request.callback_on_step_end is not None and not set(wanted(request)) <= known:
        unknown, there = (", ".join(sorted(names)) for names in (set(wanted(request)) - known, known))
        raise ValueError(f"callback_on_step_end_tensor_inputs names {unknown}; there are {there}")


def call_back(pipe: "Pipeline", request: TextToImageRequest, problem: Problem, step: Step) -> bool:
    """Runs the request's callback after a step and does what it asks for. True if it wants no more steps.

    It may change tensors in place or return others, set `pipe._guidance_scale`, and set `pipe._interrupt`.
    """
    assert request.callback_on_step_end is not None
    tensors = {"latents": problem.grid.outside(step.x, step.sigma), **problem.conditions()}
    given = {name: tensors[name] for name in wanted(request)}
    pipe._guidance_scale, pipe._interrupt = problem.scale, False
    time = torch.tensor(problem.grid.times[step.index])
    answer = request.callback_on_step_end(pipe, step.index, time, dict(given)) or {}
    final = {name: tensor for name, tensor in {**given, **answer}.items() if tensor is not None}
    if "latents" in final:
        take_latents(problem, step, final["latents"])
    problem.exchange({name: tensor for name, tensor in final.items() if name in CONDITIONS})
    problem.guide(pipe._guidance_scale)
    return pipe._interrupt


def take_latents(problem: Problem, step: Step, latents: Tensor) -> None:
    """Puts a callback's latents into the sampler's state; unchanged ones stay, since the way back would round them."""
    if latents.shape != step.x.shape:
        raise ValueError(f"the callback made latents {tuple(latents.shape)} of {tuple(step.x.shape)}: keep the shape")
    if not torch.equal(latents, problem.grid.outside(step.x, step.sigma)):
        step.x.copy_(problem.grid.inside(latents, step.sigma))
