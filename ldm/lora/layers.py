"""Low-rank changes that can be trained, in the place of a model's layers, and taken out again.

LoRA (Hu et al. 2021, arXiv:2106.09685), over convolutions as LoCon (Yeh et al. 2023, arXiv:2309.14859), DoRA (Liu et
al. 2024, arXiv:2402.09353); initial values and results are peft's.
"""

import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.finetuning import LoraConfig
from ldm.lora.factors import Factors
from ldm.lora.names import Names, parts_of
from text_encoder import PairedTextEncoder

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion

Base = nn.Linear | nn.Conv2d
# what the layers of a kind are called in U-Nets and in text encoders
TARGETS = {
    "attention": r"attn[12]\.to_(q|k|v|out\.0)|self_attn\.(q|k|v|out)_proj",
    "feedforward": r"ff\.net\.(0\.proj|2)|proj_(in|out)|mlp\.fc[12]",
    "convolutions": r"resnets\.\d+\.conv(1|2|_shortcut)|(down|up)samplers\.\d+\.conv",
}


class LoraLayer(nn.Module):
    """A linear layer or convolution W with a trainable change dW = alpha / rank * up @ down of its weight.

    y = W x + b + dW x; with `magnitude` m, DoRA's y = m / |W + dW| * (W + dW) x + b, where the norm is that of the
    weights of each output, and a constant to gradients (section 4.3).

    base: the layer itself, frozen, in whatever precision. The rest is float32: down (rank, in) or (rank, in, kh, kw),
    up (out, rank) or (out, rank, 1, 1), magnitude (out,) or None.
    """

    def __init__(self, base: Base, rank: int, alpha: float, generator: torch.Generator, *, dora: bool = False) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        weight = base.weight
        down = torch.empty(rank, *weight.shape[1:])
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
        up = torch.zeros(len(weight), rank, *[1] * (weight.ndim - 2))
        self.down, self.up = nn.Parameter(down.to(weight.device)), nn.Parameter(up.to(weight.device))
        self.magnitude = nn.Parameter(self._norm()) if dora else None
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The base's, for whoever asks a layer for its precision."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def out_channels(self) -> int:
        """Of a convolution."""
        if not isinstance(self.base, nn.Conv2d):
            raise AttributeError("a linear layer has no channels")
        return self.base.out_channels

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """As the base: its shapes, its dtype. The change is computed in float32, or as autocast has it."""
        y: Tensor = self.base(x)
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(self.down.dtype)
        change = self._change(x)
        if self.magnitude is None:
            return (y + change).to(y.dtype)
        # along outputs, the last axis of tokens and the second of images
        shape = (-1,) if isinstance(self.base, nn.Linear) else (-1, 1, 1)
        bias = 0.0 if self.base.bias is None else self.base.bias.view(shape)
        ratio = (self.magnitude / self._norm()).view(shape)
        return (bias + ratio * (y.to(ratio.dtype) - bias + change)).to(y.dtype)

    def weight_change(self) -> Tensor:
        """dW in float32 on the CPU, where no setting makes products less exact; with DoRA's magnitude, all of it."""
        weight = self.base.weight.detach().cpu().float()
        change = self._product(self.down.detach().cpu(), self.up.detach().cpu())
        if self.magnitude is not None:
            v = weight.flatten(1) + change
            change = self.magnitude.detach().cpu().view(-1, 1) * v / _lengths(v).view(-1, 1) - weight.flatten(1)
        return change.view_as(weight)

    def factors(self) -> Factors:
        """The trained tensors as `Factors`, not copied; DoRA's magnitude (out, 1, ...) as files of kohya have it."""
        tensors = {"down": self.down.detach(), "up": self.up.detach()}
        if self.magnitude is not None:
            tensors["dora_scale"] = self.magnitude.detach().view(-1, *[1] * (self.down.ndim - 1))
        return Factors(tensors, self.alpha)

    def _change(self, x: Tensor) -> Tensor:
        """dW x"""
        if isinstance(self.base, nn.Linear):
            return F.linear(self.scale * F.linear(x, self.down), self.up)
        base = self.base
        inner = F.conv2d(x, self.down, None, base.stride, base.padding, base.dilation)
        return F.conv2d(self.scale * inner, self.up)

    def _product(self, down: Tensor, up: Tensor) -> Tensor:
        """dW as a matrix (out, in * kh * kw)"""
        return self.scale * up.flatten(1) @ down.flatten(1)

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """|W + dW| of each output, (out,)"""
        with torch.autocast(self.down.device.type, enabled=False):
            return _lengths(self.base.weight.to(self.down.dtype).flatten(1) + self._product(self.down, self.up))


def _lengths(rows: Tensor) -> Tensor:
    """Of vectors (n, d), (n,); that of zeros counts as tiny, so that they stay zeros."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return lengths


def attach(model: "LatentDiffusion", config: LoraConfig, *, unet: bool, text: bool, seed: int) -> dict[str, LoraLayer]:
    """Puts trainable layers in the place of the chosen ones of the U-Net and of the text encoders.

    Returns them by own name (`ldm.lora.names`). At first they change nothing. Initial values depend on the seed and the
    layer's name alone. Everything else in these networks no longer requires gradients; layers of a text encoder that
    the model does not read are left out.

    Raises ValueError where a LoRA is loaded or attached already, or a network has no layer of the kinds asked for.
    """
    model.loras.require_settled()
    if layers_of(model):
        raise ValueError("this model has trainable low-rank layers already: detach(model) takes them out")
    names = Names.of(model)
    chosen = list(_chosen(model, names, config, unet, text))
    for network in names.parts.values():
        network.requires_grad_(False)
    alpha = config.alpha or float(config.rank)
    for own in chosen:
        base = names.modules[own]
        assert isinstance(base, Base)
        layer = LoraLayer(base, config.rank, alpha, _generator(seed, own), dora=config.dora)
        part, _, path = own.partition(".")
        names.parts[part].set_submodule(path, layer)
    return layers_of(model)


def detach(model: "LatentDiffusion") -> None:
    """Puts the layers back that `attach` took the place of, which nothing has changed."""
    parts = parts_of(model)
    for own, layer in layers_of(model).items():
        part, _, path = own.partition(".")
        parts[part].set_submodule(path, layer.base)


def layers_of(model: "LatentDiffusion") -> dict[str, LoraLayer]:
    """The trainable layers a model has, by own name."""
    return {
        f"{part}.{path}": module
        for part, network in parts_of(model).items()
        for path, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }


def lora_of(layers: Mapping[str, LoraLayer]) -> dict[str, Factors]:
    """What the layers have learned, by own name, as `ldm.lora.formats.Lora` holds it."""
    return {own: layer.factors() for own, layer in layers.items()}


def _generator(seed: int, own: str) -> torch.Generator:
    key = blake2b(f"lora\x1f{seed}\x1f{own}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)


def _chosen(model: "LatentDiffusion", names: Names, config: LoraConfig, unet: bool, text: bool) -> Iterator[str]:
    """Own names of the layers to change. Raises ValueError for a network that has none."""
    pattern = re.compile(rf"(.*\.)?({'|'.join(TARGETS[kind] for kind in config.targets)})")
    unread = _unread(model)
    for part in names.parts:
        if not (unet if part == "unet" else text):
            continue
        own = [name for name in names.modules if name.startswith(f"{part}.") and pattern.fullmatch(name)]
        own = [name for name in own if isinstance(names.modules[name], Base) and not name.startswith(unread)]
        if not own:
            raise ValueError(
                f"lora.targets = {list(config.targets)} names no layer of the {part}: add another kind of "
                f"{', '.join(TARGETS)}, or leave this network out"
            )
        yield from own


def _unread(model: "LatentDiffusion") -> tuple[str, ...]:
    """Beginnings of the names of layers behind the states that are read; the pooled text is read behind the last."""
    encoder = model.text_encoder
    one = encoder.first if isinstance(encoder, PairedTextEncoder) else encoder
    if one is encoder and one.policy.pooled:
        return ()
    layers = len(one.model.text_model.encoder.layers)
    return tuple(f"text_encoder.text_model.encoder.layers.{i}." for i in range(layers - one.policy.skip, layers))
