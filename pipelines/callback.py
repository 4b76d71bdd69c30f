"""diffusers' protocol for `callback_on_step_end`: it sees tensors by name and returns those to replace."""

from typing import TYPE_CHECKING

from torch import Tensor

from ldm.diffusion.samplers import Step
from pipelines.problem import CONDITIONS, Problem
from pipelines.request import TextToImageRequest

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline


def check_names(request: TextToImageRequest, problem: Problem) -> None:
    """Raises ValueError when the callback wants tensors that this model does not have."""
    known = {"latents", *problem.conditions()}
    wanted = set(request.callback_on_step_end_tensor_inputs)
    if request.callback_on_step_end is not None and not wanted <= known:
        unknown, there = (", ".join(sorted(names)) for names in (wanted - known, known))
        raise ValueError(f"callback_on_step_end_tensor_inputs names {unknown}; there are {there}")


def call_back(pipe: "Pipeline", request: TextToImageRequest, problem: Problem, step: Step) -> bool:
    """Runs the request's callback after a step and does what it asks for. True if it wants no more steps.

    It may change tensors in place or return others, set `pipe._guidance_scale`, and set `pipe._interrupt`.
    """
    assert request.callback_on_step_end is not None
    tensors = {"latents": problem.outside(step.x, step.sigma), **problem.conditions()}
    given = {name: tensors[name] for name in request.callback_on_step_end_tensor_inputs}
    before = {name: (tensor, _version(tensor)) for name, tensor in given.items()}
    pipe._guidance_scale, pipe._interrupt = problem.scale, False
    answer = request.callback_on_step_end(pipe, step.index, problem.grid.times[step.index], given) or {}
    changed = {
        name: tensor
        for name, tensor in answer.items()
        if tensor is not None and (tensor is not before[name][0] or _version(tensor) != before[name][1])
    }
    if "latents" in changed:
        step.x.copy_(problem.inside(changed["latents"], step.sigma))
    problem.exchange({name: tensor for name, tensor in changed.items() if name in CONDITIONS})
    problem.guide(pipe._guidance_scale)
    return pipe._interrupt


def _version(tensor: Tensor | None) -> int:
    """Rises with every change in place."""
    return 0 if tensor is None else tensor._version
