"""ControlNets around a U-Net: the same signature, and what they make of their control images is added within."""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.model import LatentDiffusion
from ldm.plan import Plan
from ldm.prepared import Prepared, Preparing, as_it_is, version_of
from ldm.speed import Speed
from unet import ControlNet
from unet.resnet import added


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet at work on one request.

    hint: its control images as `ControlNet.embed` gives them, (m, c, h, w); a condition's `hint` says which is whose,
        unless there is only one.
    scale: of all that it adds.
    start, end: the shares of the run between which it acts.
    guess: for pictures without a prompt: under guidance it acts on the conditional half alone, and its residuals fade
        from the middle to the finest level.
    """

    network: ControlNet
    hint: Tensor
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    def acts(self, t: float, evaluations: Sequence[float]) -> bool:
        """Whether it acts at time t of a run whose evaluations are at these times, in their order."""
        if self.scale == 0:
            return False
        i, n = min(range(len(evaluations)), key=lambda i: abs(evaluations[i] - t), default=0), max(len(evaluations), 1)
        return not (i / n < self.start or (i + 1) / n > self.end)


class Controlled:
    """A U-Net with its ControlNets, as the denoiser calls it. Residuals of several add up.

    evaluations: the network's times at all evaluations of the run, by which `start` and `end` count, as in diffusers.
    An evaluation at a time that comes up twice counts as the first. Without any, all of them act throughout.
    """

    def __init__(self, plan: Plan, controls: Sequence[Control], evaluations: Sequence[float] = ()) -> None:
        self.plan, self.evaluations = plan, tuple(evaluations)
        self._plans = [_ControlPlan(plan.model, control, self._times_of(control), plan.speed) for control in controls]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Conditioning) -> Tensor:
        """x (b, c, h, w), t (b,) or one for all, a condition of k b rows -> (k b, c, h, w)."""
        now = float(t.max()) if isinstance(t, Tensor) else t
        acting = [(i, plan) for i, plan in enumerate(self._plans) if plan.control.acts(now, self.evaluations)]
        residuals: list[Tensor] | None = None
        for _, plan in acting:
            own = plan(x, t, cond)
            residuals = own if residuals is None else [added(a, b) for a, b in zip(residuals, own, strict=True)]
        return self.plan(x, t, cond, residuals, tuple(i for i, _ in acting))

    def forget(self) -> None:
        """Lets go of all constants."""
        self.plan.forget()
        for plan in self._plans:
            plan.forget()

    def _times_of(self, control: Control) -> list[float]:
        return [t for t in self.plan.times if control.acts(t, self.evaluations)]


class _ControlPlan(Preparing[ControlNet, Prepared[ControlNet]]):
    """A ControlNet on one request, with constants as `Plan` has them."""

    def __init__(self, model: LatentDiffusion, control: Control, times: Sequence[float], speed: Speed) -> None:
        self.model, self.control, self.times = model, control, times
        self._halves = WeakKeyDictionary[Conditioning, tuple[int, Conditioning]]()
        super().__init__(speed)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Conditioning) -> list[Tensor]:
        """The residuals of b or k b rows; in guess mode those of the other parts of a condition are 0."""
        b, k = len(x), len(cond.context) // len(x)
        if not (self.control.guess and k > 1):
            return self._residuals(x, t, cond)
        own = self._residuals(x, t[-b:] if isinstance(t, Tensor) else t, self._last(cond, b))
        return [torch.cat([*[torch.zeros_like(one)] * (k - 1), one]) for one in own]

    def _last(self, cond: Conditioning, b: int) -> Conditioning:
        """The last b rows, guidance's conditional half: the same object for the same text, as constants want it."""
        version, half = self._halves.get(cond, (None, cond))
        if version != version_of(cond.context) or len(half.context) != b:
            rows = range(len(cond.context) - b, len(cond.context))
            version, half = self._halves[cond] = version_of(cond.context), cond.rows(list(rows))
        return half

    def _residuals(self, x: Tensor, t: Tensor | float, cond: Conditioning) -> list[Tensor]:
        net, control, hint = self.network, self.control, self._hint(cond, len(x))
        if self.is_called_as_it_is(t):
            told = {"mask": cond.mask, "vector": self._vector(cond), "scale": control.scale, "guess": control.guess}
            found: list[Tensor] = net(*as_it_is(x, t, cond), cond.context, hint, **told)
            return found
        known, x = self.told(cond), self.laid_out(x, cond)
        residuals = known.twin.control(x.to(hint.dtype), known.time(float(t)), known.context, known.bias, hint)
        return net.weighed(residuals, control.scale, control.guess)

    def _hint(self, cond: Conditioning, b: int) -> Tensor:
        """(b, c, h, w), or a single one for all."""
        hint = self.control.hint.to(self.network.conv_in.weight)
        if len(hint) == 1:
            return hint
        assert cond.hint is not None, "a condition under several control images says which is whose"
        return hint[cond.hint[:b]]

    @property
    def network(self) -> ControlNet:
        return self.control.network

    def _vector(self, cond: Conditioning) -> Tensor | None:
        return None if self.network.config.unet.vector == "none" else self.model.vector(cond)

    def _told(self, cond: Conditioning) -> Prepared[ControlNet]:
        return Prepared(self.network, cond, self._vector(cond), None, self.times, self.speed)
