"""A network that has been told a condition: a twin of it in which what is the same at every step is at hand."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ldm.conditioning import Conditioning
from ldm.mapped import to_channels_last
from ldm.quantize import parts_of
from ldm.speed import Speed
from ldm.twin import Columns, Portions, is_plain, twin
from unet.attention import Attention, TransformerBlock
from unet.resnet import ResNet, as_many
from unet.unet import Trunk, text_bias

N = TypeVar("N", bound=Trunk)
P = TypeVar("P", bound="Prepared")  # type: ignore[type-arg]
State = tuple[int, int]  # of a tensor


class Prepared(Generic[N]):
    """The twin of a network that knows one condition, which it does not keep alive.

    context (b, n, d) and bias are the text in the form that blocks take it; vector and guidance as the network does.
    whole: whether any change of the network counts, not only that of weights constants are made of: where their places
    in memory are recorded, or what it made is remembered.
    """

    def __init__(
        self,
        network: N,
        cond: Conditioning,
        vector: Tensor | None,
        guidance: Tensor | None,
        times: Sequence[float],
        speed: Speed,
        whole: bool = False,
    ) -> None:
        weight = network.conv_in.weight
        if speed.channels_last and weight.dtype.itemsize < 4:  # in float32 they are often a file's, mapped
            to_channels_last(network)
        self.network = network
        self.context, self.bias = cond.context.to(weight.dtype), text_bias(cond.mask, weight.dtype)
        self._vector, self._guidance = vector, guidance
        self._made_of: list[tuple[Tensor, list[Tensor], list[State]]] = []
        self._note_tensor(cond.context)
        self._places: list[tuple[nn.Module, str, nn.Module]] = []
        self.twin = twin(network)
        self._resnets = [module for module in network.modules() if isinstance(module, ResNet)]
        self._rows: dict[float, Tensor] = {}
        self._constants = speed.constants
        self._note(network if whole else network.conv_in)  # in whose precision all this is
        if speed.constants:
            self._learn_text()
            self._learn_times()
            self._tell(times)
        _suit(self.twin, speed, weight.device)

    def time(self, t: float) -> Tensor:
        """What the twin's ResNets take: all that is made of a time, or, without constants, the time itself."""
        if not self._constants:
            return self.network.embed_time(t, self._vector, self._guidance)
        if t not in self._rows:
            self._tell((t,))
        return self._rows[t]

    def is_fresh(self) -> bool:
        """Whether the weights that constants were made of are what they were. Their memory is held until then, so that
        nothing else can have taken its place."""
        same = all(getattr(owner, name) is module for owner, name, module in self._places)
        return same and all(states_of(tensor) == states for tensor, _, states in self._made_of)

    def _note(self, *modules: nn.Module | None) -> None:
        for module in modules:
            for parameter in module.parameters() if module is not None else ():
                self._note_tensor(parameter)

    def _note_tensor(self, tensor: Tensor) -> None:
        self._made_of.append((tensor, [part.detach() for part in parts_of(tensor)], states_of(tensor)))

    def _note_place(self, owner: nn.Module, name: str) -> None:
        self._places.append((owner, name, getattr(owner, name)))

    def _learn_text(self) -> None:
        """Gives the twin's cross-attentions their keys and values, (b, heads, n, d / heads)."""
        for own, other in zip(self.network.modules(), self.twin.modules(), strict=True):
            if isinstance(own, TransformerBlock) and isinstance(other, TransformerBlock):
                self._learn(own.attn2, other.attn2)
                if own.only_cross:
                    self._learn(own.attn1, other.attn1)

    def _learn(self, own: Attention, other: Attention) -> None:
        layers = (own.to_k, own.to_v)
        if type(own) is Attention and all(
            type(layer) is nn.Linear for layer in layers
        ):  # others ask for them themselves
            known = own.keys_values(self.context)
            other.keys_values = lambda context: known  # type: ignore[method-assign]
            self._note(*layers)
            self._note_place(own, "to_k")
            self._note_place(own, "to_v")

    def _learn_times(self) -> None:
        """Has the twin's ResNets take their columns of a row instead of a time."""
        end = 0
        for module in self.twin.modules():
            if isinstance(module, ResNet):
                width = len(module.norm2.weight)
                module.time_emb_proj = Columns(end, end + width)  # type: ignore[assignment]
                end += width
        self._note(self.network.time_embedding, self.network.class_embedding, self.network.add_embedding)
        self._note(*(resnet.time_emb_proj for resnet in self._resnets))

    def _tell(self, times: Sequence[float]) -> None:
        """A row of each time, with what all ResNets make of it: (1, d) where it is the same for all, else (b, d)."""
        if not times:
            return
        both = (self._vector, self._guidance)
        b = max((len(part) for part in both if part is not None), default=1)
        vector, guidance = (None if part is None else part.repeat(len(times), *[1] * (part.ndim - 1)) for part in both)
        t = torch.tensor(times, dtype=torch.float32, device=self.context.device).repeat_interleave(b)  # (times * b,)
        time = self.network.embed_time(t, vector, guidance)
        rows = torch.cat([resnet.time_emb_proj(time) for resnet in self._resnets], dim=1)  # (times * b, d)
        self._rows |= zip(times, rows.view(len(times), b, -1), strict=True)


class Preparing(ABC, Generic[N, P]):
    """Tells a network each condition that it meets once, as long as neither changes.

    What was compiled, hooked, adapted or subclassed, runs under gradients, or gets times that differ by row, is to be
    called as it is.
    """

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._plain = is_plain(self.network)
        self._prepared = WeakKeyDictionary[Conditioning, P]()

    @property
    @abstractmethod
    def network(self) -> N:
        """The network as it is now."""

    @abstractmethod
    def _told(self, cond: Conditioning) -> P:
        """The network, told a condition."""

    def told(self, cond: Conditioning) -> P:
        """The same object for the same condition, unless the network has changed since."""
        known = self._prepared.get(cond)
        if known is None or known.network is not self.network or not known.is_fresh():
            known = self._prepared[cond] = self._told(cond)
        return known

    def is_called_as_it_is(self, t: Tensor | float) -> bool:
        return not self._plain or isinstance(t, Tensor) or torch.is_grad_enabled() or is_hooked(self.network)

    def laid_out(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The latents as the twin is to take them."""
        x = x if self.speed.shared_trunk else as_many(x, cond.context)
        return x.contiguous(memory_format=torch.channels_last) if self.speed.channels_last else x

    def forget(self) -> None:
        """Lets go of all constants, and of the memory of weights that have moved since."""
        self._prepared.clear()


def as_it_is(x: Tensor, t: Tensor | float, cond: Conditioning) -> tuple[Tensor, Tensor]:
    """Latents and times with a row for each of the condition's."""
    x = as_many(x, cond.context)
    return x, t if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)


def is_hooked(network: nn.Module) -> bool:
    """Hooks of parts are the twin's too."""
    return bool(network._forward_hooks or network._forward_pre_hooks)


def _suit(network: nn.Module, speed: Speed, device: torch.device) -> None:
    """Has a twin do its work as suits the device."""
    for module in list(network.modules()):
        if isinstance(module, Attention):
            module.native = speed.native_attention
        elif isinstance(module, TransformerBlock) and speed.portions and device.type == "cpu":
            module.ff = Portions(module.ff)  # type: ignore[assignment]


def states_of(tensor: Tensor) -> list[State]:
    """Where the values of a tensor lie, which may be held in others, and their versions."""
    return [(part.data_ptr(), version_of(part)) for part in parts_of(tensor)]


def version_of(tensor: Tensor) -> int:
    """Counts changes in place; what was made in inference mode has no count."""
    return -1 if tensor.is_inference() else tensor._version
