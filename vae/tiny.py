"""TAESD, a tiny autoencoder distilled from the large ones (github.com/madebyollin/taesd): previews at little cost.

Modules are named as in diffusers' state dict of an AutoencoderTiny.
"""

import torch
from torch import Tensor, nn

from configs.architecture import TinyConfig
from vae.autoencoder import AutoencoderKL, DiagonalGaussian, require_channels, require_multiples
from vae.layers import conv
from vae.tiling import InParts


class Block(nn.Module):
    """Three convolutions around a skip connection: (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(c, c), nn.ReLU(), conv(c, c), nn.ReLU(), conv(c, c))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Encoder(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] -> latents (b, c, h, w)."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level, (c, count) in enumerate(zip(config.encoder_channels, config.encoder_layers, strict=True)):
            step = nn.Conv2d(c, c, 3, stride=2, padding=1, bias=False)
            layers.append(step if level else conv(config.in_channels, c))
            layers += [Block(c) for _ in range(count)]
        self.layers = nn.Sequential(*layers, conv(config.encoder_channels[-1], config.latent_channels))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers((image + 1) / 2)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents (b, c, h, w) -> images (b, 3, H, W), near [-1, 1]."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        first, last = config.decoder_channels[0], config.decoder_channels[-1]
        layers: list[nn.Module] = [conv(config.latent_channels, first), nn.ReLU()]
        for level, (c, count) in enumerate(zip(config.decoder_channels, config.decoder_layers, strict=True), start=1):
            layers += [Block(c) for _ in range(count)]
            if level < len(config.decoder_channels):
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, conv(last, config.out_channels))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(torch.tanh(z / 3) * 3) * 2 - 1  # type: ignore[no-any-return]


class AutoencoderTiny(InParts):
    """Images to scaled latents and back, used as AutoencoderKL is; the distribution it encodes to has no width.

    A configuration without levels for one half leaves it out, and its method raises ValueError.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config.sample_size)
        self.config = config
        self.encoder = Encoder(config) if config.encoder_layers else None
        self.decoder = Decoder(config) if config.decoder_layers else None

    @property
    def factor(self) -> int:
        """Pixels per latent cell, in height and in width."""
        return int(2 ** (len(self.config.decoder_layers or self.config.encoder_layers) - 1))

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The precision to run in when the model around it runs in `dtype`: the same."""
        return dtype

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Image (b, 3, H, W) in [-1, 1] -> scaled latents (b, c, h, w), float32, as a distribution of no width.

        Raises ValueError unless H and W are multiples of `factor`.
        """
        if self.encoder is None:
            raise ValueError("this tiny autoencoder was loaded from its decoder's file alone and cannot encode images")
        require_channels(image, self.config.in_channels, "images")
        require_multiples(image, self.factor)
        image = image.to(next(self.parameters()).dtype)
        z = self.in_parts(self.encoder, image, (self.factor, 1)).float()
        z = (z - self.config.shift_factor) * self.config.scaling_factor
        return DiagonalGaussian(z, torch.zeros_like(z))

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w), of any precision -> images (b, 3, H, W), float32, near [-1, 1], not clamped."""
        if self.decoder is None:
            raise ValueError("this tiny autoencoder was loaded from its encoder's file alone and cannot decode latents")
        require_channels(z, self.config.latent_channels, "latents")
        z = z.float() / self.config.scaling_factor + self.config.shift_factor
        return self.in_parts(self.decoder, z.to(next(self.parameters()).dtype), (1, self.factor)).float()


Autoencoder = AutoencoderKL | AutoencoderTiny  # what a model may have between pictures and latents
