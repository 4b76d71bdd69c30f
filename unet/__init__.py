"""Floor 1: the conditional U-Net."""

from unet.embedding import sinusoid as sinusoid
from unet.unet import UNet as UNet
