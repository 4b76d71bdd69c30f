"""A U-Net at work on one request: what is the same at every step is computed once, and nothing else changes.

The network's own code stays the paper's. A plan runs a twin of it, a second tree of modules over the same weights, in
which the keys and values of the text and what every ResNet makes of the time are at hand (`ldm.prepared`).
"""

from collections.abc import Sequence

from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.deep_cache import Acting, own_residuals
from ldm.graph import Graphed, Step
from ldm.model import LatentDiffusion
from ldm.prepared import Prepared, Preparing, as_it_is, is_hooked
from ldm.shortcuts import Shortcuts
from ldm.speed import Speed as Speed
from unet import UNet


class Plan(Preparing[UNet, "_Prepared"]):
    """The model's U-Net as the denoiser calls it, for one request.

    times: the network's times that are known to come; others are met as they come.
    shortcuts: what is left out, at the cost of the picture. Raises ValueError where the network does not allow them.

    Constants belong to one condition and to the weights they were made of: another one, or weights that have changed
    since, in place or by moving or casting the model, and they are made again. (What is written through `.data` of a
    tensor nobody can notice.) A U-Net that was compiled, hooked, adapted or subclassed, one under gradients, and times
    that differ by row, are called as they always were, with a row of latents for each of the condition.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        times: Sequence[float] = (),
        speed: Speed | None = None,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.model, self.times, self.shortcuts = model, tuple(times), shortcuts or Shortcuts()
        super().__init__(speed or Speed())
        if self.shortcuts and (not self._plain or is_hooked(model.unet)):
            raise ValueError("a compiled or hooked U-Net runs as it is: leave out deep_cache and merge_tokens")

    def __call__(
        self,
        x: Tensor,
        t: Tensor | float,
        cond: Conditioning,
        residuals: Sequence[Tensor] | None = None,
        acting: Acting = (),
    ) -> Tensor:
        """x (b, c, h, w), t (b,) or one for all, a condition of k b rows -> (k b, c, h, w).

        residuals: what the `acting` ControlNets add, as the U-Net takes them.
        """
        if self.is_called_as_it_is(t):
            return self.model.network(*as_it_is(x, t, cond), cond, residuals)
        return self.told(cond)(self.laid_out(x, cond), t, residuals or (), acting)

    @property
    def network(self) -> UNet:
        return self.model.unet

    def _told(self, cond: Conditioning) -> "_Prepared":
        return _Prepared(self.model, cond, self.times, self.speed, self.shortcuts)


class _Prepared(Prepared[UNet]):
    """The twin of a U-Net, with its shortcuts, perhaps as a graph."""

    def __init__(
        self,
        model: LatentDiffusion,
        cond: Conditioning,
        times: Sequence[float],
        speed: Speed,
        shortcuts: Shortcuts,
    ) -> None:
        graph = speed.cuda_graph and model.unet.conv_in.weight.is_cuda
        graph = graph and shortcuts.deep_cache == 1  # a graph is of one network
        whole = graph or bool(shortcuts)
        super().__init__(model.unet, cond, model.vector(cond), cond.guidance, times, speed, whole)
        self._denoise: Step = Graphed(self._step) if graph else self._step
        self._choose = shortcuts.through(self.twin, times)

    def __call__(self, x: Tensor, t: Tensor | float, residuals: Sequence[Tensor], acting: Acting) -> Tensor:
        assert not isinstance(t, Tensor), "times by row go to the network itself"
        self._chosen = self._choose(x, t, acting)
        return self._denoise(x.to(self.context.dtype), self.time(t), *residuals)

    def _step(self, x: Tensor, time: Tensor, *residuals: Tensor) -> Tensor:
        taken = own_residuals(self._chosen, residuals) if residuals else None
        return self._chosen.denoise(x, time, self.context, self.bias, taken)
