"""A step as a CUDA graph: hundreds of small kernels launched as one."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., Tensor]  # of tensors


class Graphed:
    """A function of tensors, recorded at its second call and replayed from then on.

    The first call warms up what must not be recorded. Tensors of other shapes, or more of them, are recorded anew; what
    cannot be recorded is called as it is. All else that the function reads must stay where it is in memory.
    """

    def __init__(self, function: Step) -> None:
        self.function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)
        self._broken = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._broken or not inputs[0].is_cuda:
            return self.function(*inputs)
        if [i.shape for i in self._inputs] != [i.shape for i in inputs]:
            self._inputs, self._graph = tuple(i.clone() for i in inputs), None
            return self.function(*inputs)
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)
        if self._graph is None and not self._record():
            return self.function(*inputs)
        assert self._graph is not None
        self._graph.replay()
        return self._output.clone()

    def _record(self) -> bool:
        """Whether that was possible."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._output = self.function(*self._inputs)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._broken = True
            return False
        self._graph = graph
        return True
