"""What a training run is made of, as values: the tables of a run file (`configs/runs/*.toml`). Standard library only.

Each checks its own values: ValueError beginning with the name of the field.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from configs.architecture import AutoencoderConfig, DiffusionConfig, TextEncoderConfig, UNetConfig
from configs.ranges import above_zero, at_least, require, share

STAGES = ("classifier", "autoencoder", "text", "denoiser")  # tables of a run file, in the order they are trained


def _widths(config: object, name: str) -> None:
    widths = getattr(config, name)
    require(len(widths) > 0 and min(widths) > 0, name, widths, "one width above 0 for each level")


def _multiples(widths: tuple[int, ...], name: str, of: int, what: str) -> None:
    fits = of > 0 and len(widths) > 0 and all(width > 0 and width % of == 0 for width in widths)
    require(fits, name, widths, f"one multiple of {what} for each level")


def _levels(model: UNetConfig) -> None:
    """Raises ValueError if the lists of a U-Net do not fit its levels."""
    levels = len(model.channels)
    for name in ("down_depths", "up_depths", "heads", "only_cross_attention"):
        value = getattr(model, name)
        require(len(value) == levels, f"model.{name}", value, f"{levels} of them, as many as model.channels")
    for down, up in zip(model.down_depths, reversed(model.up_depths), strict=True):
        fits = len(up) == len(down) + 1 > 1
        require(fits, "model.up_depths", model.up_depths, "one number more for each level than in model.down_depths")
    for level, (width, heads) in enumerate(zip(model.channels, model.heads, strict=True)):
        deepest = level == levels - 1 and model.mid == "transformer"
        if deepest or any(model.down_depths[level] + model.up_depths[levels - 1 - level]):
            fits = heads > 0 and width % heads == 0
            require(fits, "model.heads", model.heads, f"divisors of model.channels = {model.channels}, level by level")


@dataclass(frozen=True)
class WorldConfig:
    """Which part of the world of emoji scenes a model learns; an empty tuple is all of it.

    recipes: names of the kinds of scenes, see `ldm.data.emoji_scenes.sampling`; a model's relations follow from them.
    shares: how often each of the named kinds is met in training; empty: as often as in evaluation.
    lattice: cells from side to side of the picture that glyphs are aligned with, best the latents' pixels; 0: anywhere.
    sides: how many of these cells a thing may measure.
    hubs: how many the one that holds, wears, rides or carries may measure where no other group is beside it and its
        size is not told; the most that fit are taken.
    """

    nouns: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    shares: tuple[int, ...] = ()
    lattice: int = 0
    sides: tuple[int, ...] = ()
    hubs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least(0, self, "lattice")
        for name in ("sides", "hubs"):
            fits = all(1 <= side <= self.lattice for side in getattr(self, name))
            require(fits, name, getattr(self, name), f"whole numbers from 1 to lattice = {self.lattice}")
        fits = not self.shares or (len(self.shares) == len(self.recipes) and min(self.shares) > 0)
        require(fits, "shares", self.shares, f"{len(self.recipes)} numbers above 0, one for each of recipes")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its rate rising over `warmup` steps and then falling to `floor * rate` along a cosine or a power of the
    share of steps that are left, or constant.

    kind: "muon" trains the matrices and kernels inside the networks by Muon, at the same rate, the rest by AdamW;
        "adamw8bit" is AdamW with its moments in 8 bits, by bitsandbytes, on CUDA.
    """

    kind: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # norm of the whole gradient; 0: not clipped
    warmup: int = 500
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    power: float = 1.0  # of the polynomial
    floor: float = 0.01

    def __post_init__(self) -> None:
        above_zero(self, "rate", "power")
        at_least(0, self, "weight_decay", "clip", "warmup")
        share(self, "floor")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers from 0 to below 1")


@dataclass(frozen=True)
class LoopConfig:
    """How long and how a stage is trained, and what it leaves on disk. All counts are in optimizer steps."""

    steps: int = 1000
    batch: int = 64  # examples a step, over all processes and accumulated parts
    accumulation: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: float = 0.0  # largest decay of the averaged weights, 0: none are kept
    ema_lengths: tuple[float, ...] = ()  # of averages kept beside each checkpoint, best two: others can be had later
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    checkpointing: bool = False  # activations are computed again for gradients instead of kept: less memory, more time
    checkpoint_every: int = 500
    keep: int = 2  # newest checkpoints that stay on disk
    sample_every: int = 500
    log_every: int = 20
    workers: int = 0  # processes that make examples ahead of time
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # that get the log's numbers too, through accelerate

    def __post_init__(self) -> None:
        at_least(1, self, "steps", "batch", "accumulation", "checkpoint_every", "keep", "sample_every", "log_every")
        at_least(0, self, "workers")
        divides = self.batch % self.accumulation == 0
        require(divides, "accumulation", self.accumulation, f"a divisor of batch = {self.batch}")
        require(0 <= self.ema < 1, "ema", self.ema, "a decay from 0 to below 1")
        fits = all(0 < length <= 0.28 for length in self.ema_lengths)
        require(fits, "ema_lengths", self.ema_lengths, "shares of the run, above 0 and up to 0.28")


@dataclass(frozen=True)
class ClassifierConfig:
    """The network whose features measure perceptual distance: which glyphs does a picture show, in which colours?"""

    channels: tuple[int, ...] = (32, 64, 96, 128)
    loop: LoopConfig = LoopConfig()

    def __post_init__(self) -> None:
        _multiples(self.channels, "channels", 8, "8, the groups of its norms,")


@dataclass(frozen=True)
class AutoencoderStage:
    """The autoencoder: L1 + perceptual + KL, and from the share `adversarial_from` of its steps on a discriminator."""

    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    crop: int = 64  # pixels; 0: whole pictures
    whole_from: float = 1.0  # share of the steps from which whole pictures are used
    perceptual: float = 0.5
    kl: float = 1e-6  # of the divergence summed over a picture's latents, against a mean over its pixels
    latent_noise: float = 0.05  # added to the latents before decoding, in their standard deviations
    adversarial: float = 0.5
    adversarial_from: float = 0.6
    discriminator_channels: int = 32
    discriminator_rate: float = 2e-4
    loop: LoopConfig = LoopConfig()

    def __post_init__(self) -> None:
        at_least(0, self, "crop", "perceptual", "kl", "latent_noise", "adversarial")
        share(self, "adversarial_from", "whole_from")
        channels = self.discriminator_channels
        require(channels > 0 and channels % 4 == 0, "discriminator_channels", channels, "a multiple of 4")
        above_zero(self, "discriminator_rate")
        groups = self.model.norm_groups
        _multiples(self.model.channels, "model.channels", groups, f"model.norm_groups = {groups}")
        for name in ("quant_conv", "post_quant_conv"):  # they take up the latents' scale
            require(getattr(self.model, name), f"model.{name}", False, "true")
        factor = 2 ** (len(self.model.channels) - 1)
        require(self.crop % factor == 0, "crop", self.crop, f"a multiple of {factor}, or 0")


@dataclass(frozen=True)
class TextStage:
    """The text encoder, trained to tell which caption belongs to which picture. `model.vocabulary` is filled in."""

    model: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    negatives: int = 3  # captions nearly right, by picture
    image_channels: tuple[int, ...] = (32, 64, 128, 192)
    image_size: int = 64  # pixels of the pictures it sees
    loop: LoopConfig = LoopConfig()

    def __post_init__(self) -> None:
        at_least(0, self, "negatives")
        at_least(1, self, "image_size")
        width, heads = self.model.width, self.model.heads
        require(heads > 0 and width % heads == 0, "model.width", width, f"a multiple of model.heads = {heads}")
        _widths(self, "image_channels")


@dataclass(frozen=True)
class DenoiserStage:
    """The U-Net, with the text encoder at `text_rate` times its rate.

    ln sigma is normal with `sigma_mean` and `sigma_std`; `empty` is the share of examples without their caption.
    pool: scenes encoded beforehand and used again and again, each time with a new caption; 0: every scene is new.
    compile: the networks by torch.compile, which takes minutes before the first step and shortens every other; without
        a C++ compiler the run warns and goes on uncompiled.
    """

    model: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sigma_mean: float = 0.8
    sigma_std: float = 1.4
    empty: float = 0.1
    text_rate: float = 0.2
    pool: int = 0
    compile: bool = False
    loop: LoopConfig = LoopConfig()

    def __post_init__(self) -> None:
        above_zero(self, "sigma_std")
        share(self, "empty")
        at_least(0, self, "text_rate", "pool")
        groups = self.model.norm_groups
        _multiples(self.model.channels, "model.channels", groups, f"model.norm_groups = {groups}")
        _levels(self.model)


@dataclass(frozen=True)
class RunConfig:
    """A model of emoji scenes from nothing: its stages in the order they are trained."""

    name: str
    size: int = 128  # pixels
    seed: int = 0
    world: WorldConfig = WorldConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    autoencoder: AutoencoderStage = AutoencoderStage()
    text: TextStage = TextStage()
    denoiser: DenoiserStage = DenoiserStage()

    def __post_init__(self) -> None:
        plain = re.fullmatch(r"\w[\w.-]*", self.name) is not None
        require(plain, "name", self.name, "letters, digits and - _ . only: it becomes a folder")
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        for name in ("classifier", "autoencoder", "text", "denoiser"):
            again = getattr(self, name).loop.checkpointing
            require(not again, f"{name}.loop.checkpointing", again, "false: it is for fine-tuning")
        vae, unet, text = self.autoencoder.model, self.denoiser.model, self.text.model
        factor = 2 ** (len(vae.channels) - 1)
        require(self.size > 0 and self.size % factor == 0, "size", self.size, f"a multiple of {factor}, in pixels")
        require(self.autoencoder.crop <= self.size, "autoencoder.crop", self.autoencoder.crop, f"up to {self.size}")
        latents = f"autoencoder.model.latent_channels = {vae.latent_channels}"
        require(unet.in_channels == vae.latent_channels, "denoiser.model.in_channels", unet.in_channels, latents)
        require(unet.out_channels == vae.latent_channels, "denoiser.model.out_channels", unet.out_channels, latents)
        width = f"text.model.width = {text.width}"
        require(unet.context_dim == text.width, "denoiser.model.context_dim", unet.context_dim, width)
