"""A U-Net at work on one request: what is the same at every step is computed once, and nothing else changes.

The network's own code stays the paper's. A plan runs a twin of it, a second tree of modules over the same weights, in
which the keys and values of the text and what every ResNet makes of the time are at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ldm.conditioning import Conditioning
from ldm.graph import Graphed, Step
from ldm.model import LatentDiffusion
from ldm.shortcuts import Shortcuts
from ldm.twin import Columns, Portions, is_plain, twin
from unet import UNet
from unet.attention import Attention, TransformerBlock
from unet.resnet import ResNet, as_many
from unet.unet import text_bias


@dataclass(frozen=True)
class Speed:
    """What is done to be fast, all of it exact to rounding. Each can be switched off to see what it is worth."""

    constants: bool = True  # keys and values of the text, and the ResNets' share of all times, once a request
    shared_trunk: bool = True  # both halves of guidance are one until they meet the text
    native_attention: bool = True  # on a CPU with bfloat16 of its own, our kernel
    portions: bool = True  # on a CPU, feed-forward layers a thousand tokens at a time
    cuda_graph: bool = False  # on CUDA, a step is launched as one; off until it has been measured on a GPU
    channels_last: bool = True  # images lie in memory pixel by pixel, so that tokens are views of them; kernels too


class Plan:
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
        self.model, self.times, self.speed = model, tuple(times), speed or Speed()
        self.shortcuts = shortcuts or Shortcuts()
        self._plain = is_plain(model.unet)
        if self.shortcuts and (not self._plain or _is_hooked(model.unet)):
            raise ValueError("a compiled or hooked U-Net runs as it is: leave out deep_cache and merge_tokens")
        self._prepared = WeakKeyDictionary[Conditioning, _Prepared]()

    def __call__(self, x: Tensor, t: Tensor | float, cond: Conditioning) -> Tensor:
        """x (b, c, h, w), t (b,) or one for all, a condition of k b rows -> (k b, c, h, w)."""
        if not self._plain or isinstance(t, Tensor) or torch.is_grad_enabled() or _is_hooked(self.model.unet):
            x = as_many(x, cond.context)
            t = t if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)
            return self.model.network(x, t, cond)
        if not self.speed.shared_trunk:
            x = as_many(x, cond.context)
        if self.speed.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return self._for(cond)(x, t)

    def forget(self) -> None:
        """Lets go of all constants, and of the memory of weights that have moved since."""
        self._prepared.clear()

    def _for(self, cond: Conditioning) -> "_Prepared":
        known = self._prepared.get(cond)
        if known is None or known.unet is not self.model.unet or not known.is_fresh():
            known = self._prepared[cond] = _Prepared(self.model, cond, self.times, self.speed, self.shortcuts)
        return known


class _Prepared:
    """The twin of a U-Net that knows one condition, which it does not keep alive."""

    def __init__(
        self,
        model: LatentDiffusion,
        cond: Conditioning,
        times: Sequence[float],
        speed: Speed,
        shortcuts: Shortcuts,
    ) -> None:
        weight = model.unet.conv_in.weight
        if speed.channels_last and weight.dtype.itemsize < 4:  # in float32 they are often a file's, mapped
            model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = weight.dtype
        self.unet = model.unet
        self._context, self._bias = cond.context.to(dtype), text_bias(cond.mask, dtype)
        self._vector, self._guidance = model.vector(cond), cond.guidance
        self._made_of: list[tuple[Tensor, Tensor, int]] = [(cond.context, cond.context, _version(cond.context))]
        self._places: list[tuple[nn.Module, str, nn.Module]] = []
        self._twin = twin(model.unet)
        self._resnets = [module for module in model.unet.modules() if isinstance(module, ResNet)]
        self._rows: dict[float, Tensor] = {}
        self._constants = speed.constants
        graph = speed.cuda_graph and weight.is_cuda and shortcuts.deep_cache == 1  # a graph is of one network
        self._denoise: Step = Graphed(self._twin_step) if graph else self._twin_step
        # where a graph reads, or what is remembered is made of; in whose precision all this is
        self._note(model.unet if graph or shortcuts else model.unet.conv_in)
        if speed.constants:
            self._learn_text()
            self._learn_times()
            self._tell(times)
        _suit(self._twin, speed, weight.device)
        self._choose = shortcuts.through(self._twin, times)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self._chosen = self._choose(x, t)
        return self._denoise(x.to(self._context.dtype), self._time(t))

    def _twin_step(self, x: Tensor, time: Tensor) -> Tensor:
        return self._chosen.denoise(x, time, self._context, self._bias)

    def is_fresh(self) -> bool:
        """Whether the weights that constants were made of are what they were. Their memory is held until then, so that
        nothing else can have taken its place."""
        same = all(getattr(owner, name) is module for owner, name, module in self._places)
        return same and all(
            now.data_ptr() == then.data_ptr() and _version(now) == version for now, then, version in self._made_of
        )

    def _note(self, *modules: nn.Module | None) -> None:
        for module in modules:
            for parameter in module.parameters() if module is not None else ():
                self._made_of.append((parameter, parameter.detach(), _version(parameter)))

    def _note_place(self, owner: nn.Module, name: str) -> None:
        self._places.append((owner, name, getattr(owner, name)))

    def _learn_text(self) -> None:
        """Gives the twin's cross-attentions their keys and values, (b, heads, n, d / heads)."""
        for own, other in zip(self.unet.modules(), self._twin.modules(), strict=True):
            if isinstance(own, TransformerBlock) and isinstance(other, TransformerBlock):
                self._learn(own.attn2, other.attn2)
                if own.only_cross:
                    self._learn(own.attn1, other.attn1)

    def _learn(self, own: Attention, other: Attention) -> None:
        layers = (own.to_k, own.to_v)
        if type(own) is Attention and all(
            type(layer) is nn.Linear for layer in layers
        ):  # others ask for them themselves
            known = own.keys_values(self._context)
            other.keys_values = lambda context: known  # type: ignore[method-assign]
            self._note(*layers)
            self._note_place(own, "to_k")
            self._note_place(own, "to_v")

    def _learn_times(self) -> None:
        """Has the twin's ResNets take their columns of a row instead of a time."""
        end = 0
        for module in self._twin.modules():
            if isinstance(module, ResNet):
                width = module.conv1.out_channels
                module.time_emb_proj = Columns(end, end + width)  # type: ignore[assignment]
                end += width
        self._note(self.unet.time_embedding, self.unet.class_embedding, self.unet.add_embedding)
        self._note(*(resnet.time_emb_proj for resnet in self._resnets))

    def _time(self, t: float) -> Tensor:
        """What the twin's ResNets take: all that is made of a time, or, without constants, the time itself."""
        if not self._constants:
            return self.unet.embed_time(t, self._vector, self._guidance)
        if t not in self._rows:
            self._tell((t,))
        return self._rows[t]

    def _tell(self, times: Sequence[float]) -> None:
        """A row of each time, with what all ResNets make of it: (1, d) where it is the same for all, else (b, d)."""
        if not times:
            return
        both = (self._vector, self._guidance)
        b = max((len(part) for part in both if part is not None), default=1)
        vector, guidance = (None if part is None else part.repeat(len(times), *[1] * (part.ndim - 1)) for part in both)
        t = torch.tensor(times, dtype=torch.float32, device=self._context.device).repeat_interleave(b)  # (times * b,)
        time = self.unet.embed_time(t, vector, guidance)
        rows = torch.cat([resnet.time_emb_proj(time) for resnet in self._resnets], dim=1)  # (times * b, d)
        self._rows |= zip(times, rows.view(len(times), b, -1), strict=True)


def _suit(unet: UNet, speed: Speed, device: torch.device) -> None:
    """Has a twin do its work as suits the device."""
    for module in list(unet.modules()):
        if isinstance(module, Attention):
            module.native = speed.native_attention
        elif isinstance(module, TransformerBlock) and speed.portions and device.type == "cpu":
            module.ff = Portions(module.ff)  # type: ignore[assignment]


def _is_hooked(unet: UNet) -> bool:
    """Hooks of parts are the twin's too."""
    return bool(unet._forward_hooks or unet._forward_pre_hooks)


def _version(tensor: Tensor) -> int:
    """Counts changes in place; what was made in inference mode has no count."""
    return -1 if tensor.is_inference() else tensor._version
