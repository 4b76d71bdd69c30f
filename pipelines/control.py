"""ControlNets as a pipeline has them, and what they are to do on a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm.controlled import Control
from ldm.diffusion.grid import Grid
from ldm.diffusion.registry import Sampling
from ldm.twin import moved
from pipelines.control_image import Picture, as_hint, pictures, size_of
from pipelines.request import Size, TextToImageRequest
from unet import ControlNet
from unet.checks import check_controlnet

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion

FILES = ("config.json", "diffusion_pytorch_model.safetensors")  # of a repository on the hub
KINDS = "the path or hub id of a ControlNet, one that is loaded, or a list of these"


@dataclass(frozen=True, eq=False)
class Named:
    """A ControlNet and what records call it. original: the one that was given, if this is a copy of it elsewhere."""

    network: ControlNet
    name: str = ""
    original: nn.Module | None = None

    def on(self, device: torch.device, dtype: torch.dtype) -> "Named":
        """On a device and in a precision; the network that was given keeps its own."""
        weight = self.network.conv_in.weight
        if (weight.device, weight.dtype) == (device, dtype):
            return self
        own: ControlNet = getattr(self.network, "_orig_mod", self.network)  # inside torch.compile
        return Named(moved(own, device, dtype), self.name, own)

    def digest(self) -> str:
        """SHA-256 of its weights, as of a model."""
        from ldm.checkpoint.hash import network_hash

        return network_hash(self.original or self.network)


def read_controlnets(given: Any, dtype: torch.dtype | None = None, **hub: Any) -> tuple[Named, ...]:
    """From None, one ControlNet or a list: a path or hub id, a network of ours, or one of diffusers (on its weights).

    Raises TypeError for anything else, FileNotFoundError, and ValueError for files that hold none.
    """
    if given is None:
        return ()
    given = getattr(given, "nets", given) if _is_a("MultiControlNetModel", given) else given
    items = list(given) if isinstance(given, (list, tuple, nn.ModuleList)) else [given]
    return tuple(_read(item, dtype, hub) for item in items)


def _read(item: Any, dtype: torch.dtype | None, hub: Mapping[str, Any]) -> Named:
    if isinstance(item, Named):
        return item
    if isinstance(item, (str, Path)):
        from ldm.checkpoint.extras import load_controlnet
        from ldm.checkpoint.hub import resolve_part

        path = resolve_part(item, FILES, **hub)
        return Named(
            load_controlnet(path, dtype=dtype), Path(item).resolve().name if Path(item).exists() else str(item)
        )
    if isinstance(getattr(item, "_orig_mod", item), ControlNet):
        return Named(item)
    if _is_a("ControlNetModel", item):
        from pipelines.interop import controlnet_from_diffusers

        return Named(controlnet_from_diffusers(item), str(item.config.get("_name_or_path") or ""))
    raise TypeError(f"controlnet is {KINDS}, not {type(item).__name__}")


def _is_a(name: str, value: Any) -> bool:
    """Whether it is of a class of diffusers, which need not be loaded for this."""
    return any(base.__name__ == name for base in type(value).__mro__)


@dataclass(frozen=True, eq=False)
class Steering:
    """What steers the pictures of a request beside its text: ControlNets, one entry of each field for each of them.

    images: of a ControlNet one for all prompts, or one for each.
    """

    nets: tuple[Named, ...] = ()
    images: tuple[Sequence[Picture], ...] = ()
    scales: tuple[float, ...] = ()
    starts: tuple[float, ...] = ()
    ends: tuple[float, ...] = ()
    guess: bool = False

    @property
    def is_partial(self) -> bool:
        """Whether a ControlNet acts in a part of the run alone."""
        return any(start > 0 for start in self.starts) or any(end < 1 for end in self.ends)

    @classmethod
    def of(cls, request: TextToImageRequest, nets: tuple[Named, ...], model: "LatentDiffusion") -> "Steering":
        """Raises ValueError or TypeError for images, scales and shares that are not as many as ControlNets, and for
        ControlNets of another family than the model's."""
        if request.control_image is None:
            if nets:
                raise ValueError("a ControlNet needs control_image=, or controlnet=[] to draw without one")
            return cls()
        if not nets:
            raise ValueError("control_image is for a ControlNet: give one with controlnet=, or leave it out")
        for net in nets:
            check_controlnet(net.network.config, model.unet.config)
        prompts = request.batch // request.num_images_per_prompt
        images = pictures(request.control_image, len(nets), prompts)
        names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
        scales, starts, ends = (_for_each(name, getattr(request, name), len(nets)) for name in names)
        return cls(nets, tuple(images), scales, starts, ends, request.guess_mode)

    def size(self, factor: int) -> Size | None:
        """(height, width) in pixels of the first control image, cut to a multiple of the autoencoder's `factor`."""
        return size_of(self.images[0][0], factor) if self.images else None

    def controls(self, h: int, w: int) -> list[Control]:
        """The ControlNets with their control images, embedded for latents of (h, w)."""
        hints = [self._hint(net.network, images, (h, w)) for net, images in zip(self.nets, self.images, strict=True)]
        guesses = [self.guess or net.network.config.pooled for net in self.nets]
        networks = [net.network for net in self.nets]
        values = zip(networks, hints, self.scales, self.starts, self.ends, guesses, strict=True)
        return [Control(*value) for value in values]

    def _hint(self, network: ControlNet, images: Sequence[Picture], size: Size) -> Tensor:
        height, width = (network.factor * side for side in size)
        hint = as_hint(images, (height, width), network.config.hint_in)
        return network.embed(hint.to(network.conv_in.weight.device))

    def record(self) -> list[dict[str, Any]]:
        """What a picture's record says of each ControlNet."""
        values = zip(self.nets, self.scales, self.starts, self.ends, strict=True)
        return [
            {"name": net.name, "hash": net.digest()[:10], "scale": scale, "start": start, "end": end}
            for net, scale, start, end in values
        ]


def _for_each(name: str, value: float | list[float], count: int) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count:
        nets = "1 ControlNet" if count == 1 else f"{count} ControlNets"
        raise ValueError(f"{name} has {len(values)} entries for {nets}: give one number, or one for each")
    return tuple(values)


class WithControlNets:
    """ControlNets of a pipeline, for calls that name none."""

    model: "LatentDiffusion"
    device: torch.device
    _controlnets: tuple[Named, ...]

    @property
    def controlnet(self) -> ControlNet | list[ControlNet] | None:
        """The pipeline's ControlNet, several, or None; set it to what a call takes as `controlnet`."""
        networks = [net.network for net in self._controlnets]
        return networks[0] if len(networks) == 1 else networks or None

    @controlnet.setter
    def controlnet(self, given: Any) -> None:
        self._controlnets = read_controlnets(given, self.model.dtype)

    def steering(self, request: TextToImageRequest) -> Steering:
        """The request's ControlNets, or the pipeline's, in the model's precision, and what they are to do. Those of the
        request are left as they are: where they have to be elsewhere, copies are made for the call."""
        place, dtype = self.device, self.model.dtype
        if request.controlnet is not None:
            nets = tuple(net.on(place, dtype) for net in read_controlnets(request.controlnet, dtype))
        else:
            own = self._controlnets
            nets = tuple(net if net.network.conv_in.weight.dtype == dtype else net.on(place, dtype) for net in own)
        return Steering.of(request, nets, self.model)


def evaluations(sampling: Any, grid: Grid) -> list[float]:
    """The network's times at all evaluations of a run, which some samplers have more of than steps: found by
    rehearsing it with a single number."""
    if not isinstance(sampling, Sampling):  # a scheduler of diffusers has one for each of its times
        return list(grid.times)
    times: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        times.append(float(grid.time(sigma)))
        return x

    nothing = torch.zeros(1, 1, 1, 1)
    for _ in sampling.run(denoise, nothing, grid, lambda *_: nothing):
        pass
    return times
