"""The KL autoencoder: images to latents of roughly unit variance and back.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752.
Shapes: b batch, H W image height and width in pixels, c latent channels, h w latent height and width, H = factor * h.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.architecture import AutoencoderConfig
from vae.decoder import Decoder
from vae.encoder import Encoder
from vae.names import canonical_name, is_projection
from vae.tiling import InParts


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """Independent normal distributions, one per latent value: mean and std (b, c, h, w), float32."""

    mean: Tensor
    std: Tensor

    def mode(self) -> Tensor:
        """The most likely latents (b, c, h, w)."""
        return self.mean

    def sample(
        self,
        noise: Tensor | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """One draw (b, c, h, w): mean + std * noise.

        noise: standard normal values to use. Without it they are drawn in float32 on the generator's device, for a
        sequence of generators image by image.
        """
        return self.mean + self.std * (self._noise(generator) if noise is None else noise)

    def kl(self) -> Tensor:
        """Divergence from the standard normal by image (b,), in nats, summed over the latent values."""
        return 0.5 * (self.mean**2 + self.std**2 - 1 - 2 * self.std.log()).sum((1, 2, 3))

    def _noise(self, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
        shape, device = self.mean.shape, self.mean.device
        if isinstance(generator, Sequence):
            if len(generator) != len(self.mean):
                raise ValueError(
                    f"{len(generator)} generators for {len(self.mean)} images: pass one each, or a single one"
                )
            return torch.cat([torch.randn(1, *shape[1:], generator=g, device=g.device).to(device) for g in generator])
        where = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=where).to(device)


class AutoencoderKL(InParts):
    """Images in [-1, 1] to latents and back, with diffusers' state-dict names.

    It owns the scale of its latents: what `encode` gives and `decode` takes is what the denoiser works on,
    (z - shift) * scaling_factor or (z - latents_mean) * scaling_factor / latents_std of the network's own z.

    slicing: one image at a time. tiling: images beyond `tile_size` pixels in overlapping tiles (see `vae.tiling`). That
    size is the configuration's `sample_size` until set; a smaller one needs less memory.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config.sample_size)
        c = config.latent_channels
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1) if config.quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(c, c, 1) if config.post_quant_conv else nn.Identity()

    @property
    def factor(self) -> int:
        """Pixels per latent cell, in height and in width."""
        return int(2 ** (len(self.config.channels) - 1))

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The precision to run in when the model around it runs in `dtype`: not float16 where that would overflow.

        Weights in float16 may be left so: they change with the first image.
        """
        return torch.float32 if self.config.force_upcast and dtype == torch.float16 else dtype

    def encode(self, image: Tensor) -> DiagonalGaussian:
        """Image (b, 3, H, W) in [-1, 1], of any precision -> distribution of scaled latents (b, c, h, w), float32.

        Raises ValueError unless H and W are multiples of `factor`.
        """
        return self.scaled(self.posterior(image))

    def scaled(self, raw: DiagonalGaussian) -> DiagonalGaussian:
        """The distribution of scaled latents where that of the network's own is `raw`."""
        offset, gain = self._scaling(raw.mean.device)
        return DiagonalGaussian((raw.mean - offset) * gain, raw.std * gain)

    def posterior(self, image: Tensor) -> DiagonalGaussian:
        """As `encode`, before any scaling: the distribution whose `kl` an autoencoder is trained with."""
        require_channels(image, self.config.in_channels, "images")
        require_multiples(image, self.factor)
        self._settle()
        image = laid_out(image.to(self.encoder.conv_in.weight.dtype))
        moments = self.in_parts(lambda x: self.quant_conv(self.encoder(x)), image, (self.factor, 1))
        mean, logvar = moments.float().chunk(2, 1)  # (b, 2c, h, w) -> 2 x (b, c, h, w)
        return DiagonalGaussian(mean, torch.exp(0.5 * logvar.clamp(-30, 20)))

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (b, c, h, w), of any precision -> images (b, 3, H, W), float32, near [-1, 1], not clamped."""
        require_channels(z, self.config.latent_channels, "latents")
        self._settle()
        offset, gain = self._scaling(z.device)
        z = laid_out((z.float() / gain + offset).to(self.decoder.conv_in.weight.dtype))
        return self.in_parts(lambda x: self.decoder(self.post_quant_conv(x)), z, (1, self.factor)).float()

    def _settle(self) -> None:
        """Makes weights that are stored in float16, and would overflow, float32: not before they are needed."""
        dtype = self.decoder.conv_in.weight.dtype
        if (wider := self.compute_dtype(dtype)) != dtype:
            self.to(wider)

    def _scaling(self, device: torch.device) -> tuple[Tensor | float, Tensor | float]:
        """(offset, gain): scaled latents are (z - offset) * gain."""
        config = self.config
        if config.latents_mean is None or config.latents_std is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, std = torch.tensor((config.latents_mean, config.latents_std), device=device).view(2, 1, -1, 1, 1)
        return mean, config.scaling_factor / std


def canonical_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under today's names: older files call the attention projections query, key, value and proj_attn.

    Projections stored as 1x1 convolutions, (c, c, 1, 1) or (c, c, 1), become the matrices (c, c) they are.
    """
    return {
        canonical_name(name): tensor.flatten(1) if is_projection(name) and tensor.ndim > 2 else tensor
        for name, tensor in state_dict.items()
    }


def laid_out(x: Tensor) -> Tensor:
    """x (b, c, h, w) as it is convolved fastest: on a CPU pixel by pixel, which also takes the least memory, but
    channel by channel where gradients are wanted."""
    if x.device.type != "cpu":
        return x
    trains = torch.is_grad_enabled()
    return x.contiguous(memory_format=torch.contiguous_format if trains else torch.channels_last)


def require_channels(x: Tensor, c: int, what: str) -> None:
    if x.ndim != 4 or x.shape[1] != c:
        raise ValueError(f"{what} must have the shape (batch, {c}, height, width), got {tuple(x.shape)}")


def require_multiples(image: Tensor, factor: int) -> None:
    h, w = image.shape[2:]
    if h % factor or w % factor:
        fit = " x ".join(str(max(side // factor, 1) * factor) for side in (w, h))
        raise ValueError(
            f"image is {w} x {h} pixels, but width and height must be multiples of {factor}: resize or crop it to {fit}"
        )
