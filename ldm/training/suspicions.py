"""What looks like a mistake in a run file, before it costs a run: one sentence each, with what to do."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

import torch
from accelerate import PartialState

from configs.finetuning import ControlConfig, FineTuneConfig, InversionConfig, LoraConfig, ReconstructionConfig
from ldm.diffusion.schedulers import diffusion_from_scheduler_config
from ldm.training.ready import Ready, own_size
from ldm.training.suspicious_pictures import CHECKS as OF_PICTURES
from ldm.training.suspicious_pictures import own_batch, says, word_of
from ldm.training.tuned import Tuned

# what most people train with by AdamW, whose rates Muon is scaled to take too (`muon.py`)
RATES = {"full": 1e-5, "dreambooth": 2e-6, "lora": 1e-4, "inversion": 5e-3, "controlnet": 1e-5, "autoencoder": 1e-5}
SMALL = 50_000_000  # weights of a U-Net below which ten times as much is usual too
OFF = 10.0  # times the usual rate
EPOCHS = 500
_HALF_SILENT = 0.5
_STILL = ("min_snr", "p2", "debiased")  # weightings that are 0 at pure noise
_GUIDED = ("full", "lora", "controlnet")  # modes that change what guidance is between
_MANY = ("full", "controlnet", "autoencoder")  # modes that a handful of pictures is too few for

Check = Callable[[FineTuneConfig, Ready], Iterator[str]]


def suspicions(config: FineTuneConfig, ready: Ready, device: torch.device | None = None) -> list[str]:
    """Sentences about settings that are allowed and most likely not meant. device: that of the run, if not this one."""
    found = [text for check in (*CHECKS, *OF_PICTURES) for text in check(config, ready)]
    return found + list(precision(config, ready, device or PartialState().device))


def rate(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Too high or too low by ten times."""
    kind = "dreambooth" if config.mode == "full" and config.prior.prompts else config.mode
    usual, given = RATES[kind], config.loop.optimizer.rate
    high = usual * OFF * (OFF if _small(ready) else 1)
    if given >= high * (1 - 1e-9):
        yield f"optimizer.rate = {given:g} is {given / usual:.0f} times what is usual here: try {high / OFF:g}"
    if given <= usual / OFF * (1 + 1e-9):
        yield f"optimizer.rate = {given:g} is a {usual / given:.0f}th of what is usual here: try {usual:g}"
    if config.trains.text and config.trains.text_rate > 1 and config.mode in ("full", "lora"):
        yield (
            f"trains.text_rate = {config.trains.text_rate:g} trains the text encoder faster than the U-Net, which "
            "makes it forget words: try 0.1"
        )


def lora(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """alpha / rank, the scale of what is learned."""
    alpha, rank = config.lora.alpha, config.lora.rank
    if config.mode != "lora" or not alpha:
        return
    if alpha <= rank / 8:
        yield (
            f"lora.alpha = {alpha:g} with rank = {rank} makes all that is learned {rank / alpha:.0f} times weaker: "
            "leave alpha out, or raise optimizer.rate as much"
        )
    if alpha >= 4 * rank:
        yield (
            f"lora.alpha = {alpha:g} with rank = {rank} makes all that is learned {alpha / rank:.0f} times stronger: "
            "leave alpha out, or lower optimizer.rate as much"
        )


def dropout(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Guidance needs examples without captions, and nothing can be called by them."""
    share = config.data.caption_dropout
    if config.mode in _GUIDED and share == 0:
        yield (
            "data.caption_dropout = 0: what guidance compares with is not trained along, which shows in long runs: "
            "try 0.1"
        )
    if config.mode != "autoencoder" and share > _HALF_SILENT:
        yield f"data.caption_dropout = {share:g} hides most captions from the model: try 0.1"


def length(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Steps, as epochs of one's own pictures."""
    loop, batch = config.loop, own_batch(config)
    epochs = loop.steps * batch / len(ready.pictures)
    if epochs < 1:
        seen = f"{loop.steps} steps of {batch} meet only {epochs:.0%} of the pictures"
        yield f"{seen}: for all of them once take loop.steps = {-(-len(ready.pictures) // batch)}"
    if epochs > EPOCHS and config.mode != "inversion":
        fewer = max(100 * len(ready.pictures) // batch, 1)
        yield (
            f"{loop.steps} steps of {batch} meet each picture {epochs:.0f} times, enough to learn it by heart: try "
            f"loop.steps = {fewer}, or more pictures"
        )
    if loop.optimizer.warmup >= loop.steps:
        yield (
            f"optimizer.warmup = {loop.optimizer.warmup} lasts for the whole run of {loop.steps} steps, whose rate "
            f"stays low: try {loop.steps // 20}"
        )


def average(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """A decay that a short run never comes near."""
    span = 1 / (1 - config.loop.ema)
    if config.loop.ema and span > 10 * config.loop.steps:
        yield (
            f"loop.ema = {config.loop.ema:g} averages over {span:.0f} steps, where the run has {config.loop.steps}: "
            f"try {max(1 - 10 / config.loop.steps, 0):.4g}, or 0 for none"
        )


def size(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Far from what the model was trained at."""
    own, given = own_size(ready.model), config.data.size
    if given and config.mode != "autoencoder" and not own / 2 < given < own * 2:
        yield f"data.size = {given} is far from the {own} pixels of the model, which it draws at: leave it out"


def objective(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Losses that leave out what they were chosen for, or that no other program knows of."""
    module, asked = ready.prepared.module, config.objective
    if not isinstance(module, Tuned):
        return
    before, after = diffusion_from_scheduler_config(ready.model.scheduler_config), module.objective.diffusion
    if after.zero_terminal_snr and asked.weighting in _STILL:
        yield (
            f'objective.weighting = "{asked.weighting}" gives pure noise no weight, the very step that zero terminal '
            'SNR is for: take "none" or "edm"'
        )
    changed = before.prediction != after.prediction or before.zero_terminal_snr != after.zero_terminal_snr
    if changed and config.mode != "full":
        yield (
            "objective changes what the model predicts or its noise, which the file that is left cannot tell other "
            'programs: leave it as it is, or take mode = "full"'
        )
    for name in ("offset_noise", "input_perturbation"):
        if (value := getattr(asked, name)) > 0.25:
            yield f"objective.{name} = {value:g} is much: pictures lose their contrast or detail; try 0.05 to 0.1"


def watching(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Whether anything will show how the run goes."""
    asked, held_out = config.validation, ready.pictures.held_out
    if asked.stop_on_overfit and (held_out is None or not asked.measure_every):
        missing = "no picture is held out" if held_out is None else "validation.measure_every is 0"
        yield (
            f"validation.stop_on_overfit has nothing to go by, for {missing}: it takes data.held_out > 0, 20 pictures "
            "or more, and validation.measure_every > 0"
        )
    elif held_out is None and config.data.held_out and config.mode in _MANY and not config.prior.prompts:
        yield (
            f"none of {len(ready.pictures.items)} pictures is held out, for they are fewer than 20: nothing will show "
            "whether they are learnt by heart"
        )


def prompts(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Validation prompts that show what is learned."""
    word, asked = word_of(config), config.validation.prompts
    if not word or config.mode == "autoencoder":
        return
    if not asked:
        yield f'validation.prompts is empty: with ["a picture of {word}"] the run would show what it learns'
    elif not any(says(prompt, word) for prompt in asked):
        yield f'none of validation.prompts says "{word}": they will not show what is learned'


def prior(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """The prior's pictures."""
    if config.prior.prompts and config.prior.weight == 0:
        yield "prior.weight = 0 has half of every batch count for nothing: leave prior.prompts out, or take 1"


def unused(config: FineTuneConfig, ready: Ready) -> Iterator[str]:
    """Tables of another mode."""
    tables = {
        "lora": config.lora != LoraConfig(),
        "inversion": config.inversion != InversionConfig(),
        "controlnet": config.control != ControlConfig(),
        "autoencoder": config.reconstruction != ReconstructionConfig() or not config.trains.decoder_only,
    }
    for mode, given in tables.items():
        if given and mode != config.mode:
            yield f'there are settings of mode = "{mode}" in a run of mode = "{config.mode}", which does not read them'
    if config.trains.text and config.mode not in ("full", "lora"):
        yield f'trains.text has no effect in mode = "{config.mode}"'
    if config.mode == "autoencoder" and not config.trains.decoder_only:
        yield (
            "trains.decoder_only = false changes the latents: no model that was trained on them, this one's U-Net "
            "included, can use the autoencoder as it is"
        )


def precision(config: FineTuneConfig, ready: Ready, device: torch.device) -> Iterator[str]:
    """Of a CPU."""
    asked = config.loop.precision
    if device.type == "cpu" and asked == "fp16":
        yield 'loop.precision = "fp16" is for GPUs: take "no" or, where memory is short, "bf16"'
    if device.type == "cpu" and asked == "bf16" and _small(ready) and not has_bfloat16():
        yield (
            'loop.precision = "bf16" takes this CPU, which has no instructions for it, several times as long as "no", '
            "and so small a model needs no less memory: take that"
        )


CHECKS: tuple[Check, ...] = (
    rate, lora, dropout, length, average, size, objective, watching, prompts, prior, unused
)  # fmt: skip


def has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 itself; also True where that cannot be told."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return ask is None or platform.machine().lower() not in ("x86_64", "amd64") or bool(ask())


def _small(ready: Ready) -> bool:
    return sum(parameter.numel() for parameter in ready.model.unet.parameters()) < SMALL
