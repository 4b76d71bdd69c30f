"""Stable Diffusion 1.5's U-Net at its real width: our bfloat16 is as close to float32 as diffusers' own."""

import diffusers
import torch
from torch import nn

from configs import presets
from configs.interchange import unet_to_json
from unet import UNet


def random_weights(network: nn.Module, seed: int) -> None:
    """Seeded weights near a trained network's scale, float32, in place of meta tensors."""
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(generator=generator).mul_(scale)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data.add_(1)


@torch.no_grad()
def test_bfloat16_is_as_exact_as_diffusers() -> None:
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(unet_to_json(presets.UNET_SD15))
        ours = UNet(presets.UNET_SD15)
    random_weights(theirs, seed=0)
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 4, 32, 32, generator=generator), torch.randn(1, 77, 768, generator=generator)
    t = torch.tensor([500.0])
    reference = theirs.eval()(x, t, context).sample
    theirs.to(torch.bfloat16)
    ours.load_state_dict(theirs.state_dict(), assign=True)  # the same tensors: 1.7 GB in all
    x, context = x.bfloat16(), context.bfloat16()
    error = (theirs(x, t, context).sample.float() - reference).norm() / reference.norm()
    own_error = (ours(x, t, context).float() - reference).norm() / reference.norm()
    assert 1e-4 < error < 0.1  # rounding, and nothing but rounding
    assert own_error <= 1.1 * error
