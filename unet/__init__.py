"""Floor 1: the conditional U-Net."""

from unet.adapter import Adapter as Adapter
from unet.controlnet import ControlNet as ControlNet
from unet.embedding import sinusoid as sinusoid
from unet.unet import UNet as UNet
