"""A running call: its arguments as a request, its steps as they come, its end as a result."""

import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor

from pipelines.result import Result
from vae.preview import preview

P = ParamSpec("P")
Request = TypeVar("Request")
Answer = TypeVar("Answer")
Pipe = TypeVar("Pipe")


def takes(
    request: Callable[P, Request],
) -> Callable[[Callable[[Pipe, Request], Answer]], Callable[Concatenate[Pipe, P], Answer]]:
    """Lets a method that takes a request be called with the request's own arguments, which are thus written once."""

    def decorate(method: Callable[[Pipe, Request], Answer]) -> Callable[Concatenate[Pipe, P], Answer]:
        @functools.wraps(method)
        def call(self: Pipe, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
            return method(self, request(*args, **kwargs))

        own = inspect.signature(method)
        parameters = [next(iter(own.parameters.values())), *inspect.signature(request).parameters.values()]
        call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return call

    return decorate


class Interrupted(Exception):
    """Raised out of a running call by `Pipeline.interrupt()`; nothing was decoded."""


@dataclass(frozen=True, eq=False)
class Progress:
    """One finished step of a running call.

    index counts from 0, steps is how many there will be, sigma the noise level reached; latents is the noisy state and
    denoised the estimate of the picture, both (b, c, h, w).
    """

    index: int
    steps: int
    sigma: float
    latents: Tensor
    denoised: Tensor
    family: str

    def preview(self) -> list[Any]:
        """The estimate as small PIL images, by a linear map from latents to colours: cheap, no decoder runs."""
        return preview(self.denoised, self.family)


class Stream:
    """The steps of a running call: iterate for progress, take `result` for the pictures.

    Leaving the loop early stops at once: nothing more is computed and nothing is decoded.
    """

    def __init__(self, steps: Generator[Progress, None, Result], length: int) -> None:
        self._steps, self._length = steps, length
        self._result: Result | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Progress]:
        result = yield from self._steps
        if result is not None:  # None: iterated once more after the end
            self._result = result

    @property
    def result(self) -> Result:
        """The pictures; runs what is left of the steps first. Raises Interrupted if the loop was left early."""
        for _ in self:
            pass
        if self._result is None:
            raise Interrupted("these steps did not come to their end, so there are no pictures")
        return self._result
