"""peft's LoRA layers on the U-Net."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.architecture import UNetConfig
from unet import UNet
from unet.attention import Pointwise

peft = pytest.importorskip("peft")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2"]
CONFIG = UNetConfig(
    channels=(16, 32),
    down_depths=((1, 1), (0, 0)),
    up_depths=((0, 0, 0), (1, 1, 1)),
    heads=(2, 4),
    context_dim=24,
    only_cross_attention=(False, False),
    norm_groups=8,
)


@pytest.mark.parametrize("linear", [False, True], ids=["convolution", "linear"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["injected", "wrapped"])
def test_lora(linear: bool, wrapped: bool, randomise: Callable[[nn.Module, int], nn.Module]) -> None:
    unet: Any = randomise(UNet(replace(CONFIG, linear_projection=linear)), 1)
    inputs = torch.randn(2, 4, 6, 10), torch.tensor([3, 700]), torch.randn(2, 5, 24)
    names, plain = list(unet.state_dict()), unet(*inputs)
    original = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    targets = [name for name, module in unet.named_modules() if name.endswith(tuple(f".{end}" for end in TARGETS))]
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS)
    model = peft.get_peft_model(unet, config) if wrapped else peft.inject_adapter_in_model(config, unet)

    # nothing is changed at first
    torch.testing.assert_close(model(*inputs), plain)
    # only the LoRA learns
    model(*inputs).square().sum().backward()
    learning = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    assert learning == {f"{name}.lora_{side}.default.weight" for name in targets for side in "AB"}
    # what it changes is up @ down times alpha / rank, and merging it leaves the checkpoint's own names
    changes: dict[str, Tensor] = {}
    for name in targets:
        layer = unet.get_submodule(name)
        nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
        down, up = (side["default"].weight.detach() for side in (layer.lora_A, layer.lora_B))
        changes[f"{name}.weight"] = 2 * (up.flatten(1) @ down.flatten(1)).view(original[f"{name}.weight"].shape)
    changed = model(*inputs)
    assert not torch.allclose(changed, plain, atol=0.1)
    merged = model.merge_and_unload() if wrapped else merge(unet, targets)
    assert list(merged.state_dict()) == names
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, original[name] + changes.get(name, 0))
    torch.testing.assert_close(merged(*inputs), changed, rtol=1e-4, atol=1e-4)


def merge(unet: nn.Module, targets: list[str]) -> nn.Module:
    for name in targets:
        layer: Any = unet.get_submodule(name)
        layer.merge()
        unet.set_submodule(name, layer.get_base_layer())
    return unet


def test_a_pointwise_convolution_is_a_convolution() -> None:
    layer, x = Pointwise(6, 10, 1), torch.randn(2, 6, 3, 5)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).permute(0, 2, 3, 1).is_contiguous()  # its tokens are not copied
