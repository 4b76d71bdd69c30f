"""Weights of a U-Net in 8 bits, through torchao (pip install "ldm-pipelines[quantize]"): lossy, so never on by itself.

The layers stay `nn.Linear`; their weights become tensors that hold others, which torch has a protocol for. So all but
`quantize` itself works without torchao, and knows weights that its own `quantize_` was called on, too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from unet.attention import Transformer

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion

HELD_IN = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
FP8_CAPABILITY = (8, 9)  # of GPUs that multiply them: Ada, Hopper and later


def quantize(model: "LatentDiffusion", kind: str, device: torch.device) -> None:
    """Has the linear layers of the U-Net's transformers hold their weights in 8 bits. There is no way back.

    kind: "int8", a whole number and the channel's scale for each weight; the layers compute in the model's precision,
        so that memory is saved and not time. Or "fp8": they multiply in float8 too, with a scale for each row, on the
        device the model is for.

    Convolutions, norms and what is made of the time stay as they are. The model's hash remains that of the weights
    these were made of. Raises ValueError for what `require_possible` does, while LoRAs are loaded, and for a U-Net in
    which there is nothing to quantise.
    """
    from ldm.checkpoint.hash import remember_hash, weights_hash

    if len(model.loras):
        raise ValueError("LoRAs are merged into these weights: fuse_lora() or unload_lora() before quantising them")
    require_unquantized(model.unet, "quantised again")
    config, digest = require_possible(kind, device, model.dtype), weights_hash(model)
    for module in model.unet.modules():
        if isinstance(module, Transformer):
            _torchao().quantize_(module, config)
    if not quantized(model.unet):
        raise ValueError(f"this U-Net has no linear layer that {kind} fits: leave quantize out")
    remember_hash(model.unet, digest)


def require_possible(kind: str, device: torch.device, dtype: torch.dtype) -> Any:
    """torchao's configuration of a kind. ValueError for another, one that the device or the precision of the model does
    not allow, or without torchao."""
    if kind not in HELD_IN:
        raise ValueError(f'quantize is "int8" or "fp8", not {kind!r}')
    if kind == "fp8" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY):
        raise ValueError('fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper): take quantize="int8"')
    if kind == "fp8" and dtype != torch.bfloat16:
        raise ValueError(
            f"fp8 goes with a model in bfloat16, and this one is in {dtype}: load it with dtype='bfloat16'"
        )
    torchao = _torchao()
    if kind == "int8":
        return torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    return torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow(), set_inductor_config=False)


def _torchao() -> Any:
    try:
        return import_module("torchao.quantization")
    except ImportError as error:
        remedy = 'pip install "ldm-pipelines[quantize]"'
        raise ValueError(f"quantize is work for torchao, which does not load ({error}): {remedy}") from None


def quantized(network: nn.Module) -> str:
    """What the weights of a network's linear layers are held in: "int8", "fp8", the name of another kind of tensor of
    torchao's, or "" where they are whole."""
    weights = (module.weight for module in network.modules() if isinstance(module, nn.Linear))
    return next(filter(None, map(_held_in, weights)), "")


def _held_in(weight: Tensor) -> str:
    if not is_traceable_wrapper_subclass(weight):
        return ""
    inner = {part.dtype for part in parts_of(weight) if part.shape == weight.shape}
    name = type(weight).__name__ if type(weight).__module__.startswith("torchao.") else ""
    return next((kind for kind, dtype in HELD_IN.items() if dtype in inner), name)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that one holds, and has its values in; of an ordinary one, itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(tensor, name))]


def require_unquantized(network: nn.Module, use: str) -> None:
    """Raises ValueError where weights are held in 8 bits and cannot be, say, "saved"."""
    if kind := quantized(network):
        raise ValueError(f"weights held in 8 bits ({kind}) cannot be {use}: load the model without quantize")
