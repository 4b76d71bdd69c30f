# mypy: no-warn-return-any
"""The patch discriminator of adversarial autoencoders, and how much its gradient counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Is each patch of a picture real? (b, 3, s, s) -> logits (b, 1, s', s'), s' near s / 8.

    Isola et al. 2017 (1611.07004), three layers, with GroupNorm for BatchNorm so that batches stay independent.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        widths = [channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for narrow, wide in ((widths[0], widths[1]), (widths[1], widths[2])):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.GroupNorm(8, wide), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[2], 1, 4, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (), zero once every patch is beyond its margin (Lim and Ye 2017, 1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How often the adversarial gradient fits into the reconstruction's, at the decoder's last weight.

    Esser et al. 2021 (2012.09841), equation 7. Returns () without a gradient.
    """
    (mine,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (mine.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()
