"""Asks a U-Net itself whether it predicts noise or velocity."""

import torch

from unet import UNet

LAST_STEP = 999  # of training: nearly pure noise
TURNING_POINT = -1.0


@torch.no_grad()
def predicts_velocity(unet: UNet) -> tuple[bool, float]:
    """(whether it predicts v, mean of output minus input), for a Stable Diffusion 2 U-Net with four input channels.

    The question of AUTOMATIC1111's web UI: everything 0.5 at the last step. There the input is nearly all noise, so a
    network that predicts noise gives it back, while v is about minus the picture.
    """
    like = unet.conv_in.weight
    x = torch.full((1, unet.config.in_channels, 8, 8), 0.5, dtype=like.dtype, device=like.device)
    context = torch.full((1, 2, unet.config.context_dim), 0.5, dtype=like.dtype, device=like.device)
    out = unet(x, torch.tensor([LAST_STEP], device=like.device), context)
    mean = float((out.float() - x.float()).mean())
    return mean < TURNING_POINT, mean
