"""Pictures that a run shows: of the validation prompts before and in the course of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from configs.finetuning import FineTuneConfig
from ldm.data.pictures.cache import key_of
from ldm.model import LatentDiffusion
from ldm.training.modes.mode import assembled
from ldm.training.tuned import Tuned
from unet.controlnet import ControlNet
from vae import AutoencoderKL

_SIDE, _LINE = 256, 14  # pixels of a picture's longer side at most, and of a line of its caption


@dataclass(frozen=True)
class Wanted:
    """Pictures to draw: one for each prompt, with the seeds seed, seed + 1, ... A value of 0 is the model's own.

    hints: the control image of each, for `control`.
    """

    prompts: Sequence[str]
    seed: int = 0
    steps: int = 0
    guidance_scale: float = 0.0
    negative_prompt: str = ""
    control: ControlNet | None = None
    hints: Sequence[Image.Image] = ()


Draw = Callable[[LatentDiffusion, Wanted], list[Image.Image]]  # a task of the floor above


class Validation:
    """Draws a run's prompts, and keeps what the model drew before it was trained, in `folder`.

    hints: for a ControlNet, control images, the prompts taking turns with them.
    """

    def __init__(
        self,
        config: FineTuneConfig,
        model: LatentDiffusion,
        draw: Draw,
        folder: Path,
        hints: Sequence[Image.Image] = (),
    ) -> None:
        self.config, self.model, self.draw, self.folder, self.hints = config, model, draw, folder, hints

    @property
    def before(self) -> Path:
        """Where the pictures of the untrained model are."""
        return self.folder / "before"

    def begin(self, module: nn.Module) -> None:
        """Draws with the untrained model what has not been drawn with it yet."""
        if all(path.exists() for path in self._places()):
            return
        self.before.mkdir(parents=True, exist_ok=True)
        for path, picture in zip(self._places(), self._drawn(module), strict=True):
            picture.save(path)

    def _places(self) -> list[Path]:
        """A file for each prompt, told apart by all that the picture depends on beside the model."""
        asked, hints = self.config.validation, self._hints() if self.hints else []
        same = (asked.steps, asked.guidance_scale, asked.negative_prompt)
        seeds = enumerate(asked.prompts, asked.seed)
        keys = [key_of(prompt, seed, same) for seed, prompt in seeds]
        keys = [key_of(key, hint.tobytes()) for key, hint in zip(keys, hints, strict=True)] if hints else keys
        return [self.before / f"{key[:16]}.png" for key in keys]

    def __call__(self, module: nn.Module) -> Image.Image:
        """The pictures of today beneath those of before."""
        before = [Image.open(path).convert("RGB") for path in self._places()]
        rows = {"before": before, "now": self._drawn(module)}
        if self.hints:
            rows = {"control": self._hints(), **rows}
        return sheet(rows, self.config.validation.prompts)

    def _hints(self) -> list[Image.Image]:
        return [self.hints[i % len(self.hints)] for i in range(len(self.config.validation.prompts))]

    @torch.no_grad()
    def _drawn(self, module: nn.Module) -> list[Image.Image]:
        asked = self.config.validation
        wanted = Wanted(asked.prompts, asked.seed, asked.steps, asked.guidance_scale, asked.negative_prompt)
        if not isinstance(module, Tuned):
            autoencoder = module.autoencoder
            assert isinstance(autoencoder, AutoencoderKL)
            for network in (self.model.unet, self.model.text_encoder):  # what trains the autoencoder leaves them behind
                network.to(next(autoencoder.parameters()).device)
            return self.draw(replace(self.model, autoencoder=autoencoder), wanted)
        if module.control is not None:
            wanted = replace(wanted, control=module.control, hints=self._hints())
        was = module.training
        try:
            return self.draw(assembled(self.model, module.eval()), wanted)
        finally:
            module.train(was)


def sheet(rows: dict[str, list[Image.Image]], captions: Sequence[str]) -> Image.Image:
    """Rows of pictures, each named on its left, under their captions."""
    font = ImageFont.load_default(_LINE - 2)
    shown = {name: [_small(picture) for picture in pictures] for name, pictures in rows.items()}
    everything = [picture for pictures in shown.values() for picture in pictures]
    w, h = max(p.width for p in everything), max(p.height for p in everything)
    left, top = 56, 3 * _LINE + 4
    whole = Image.new("RGB", (left + len(captions) * (w + 4), top + len(shown) * (h + 4)), "white")
    pen = ImageDraw.Draw(whole)
    for column, caption in enumerate(captions):
        x = left + column * (w + 4)
        for line, text in enumerate(_lines(caption, pen, font, w)[:3]):
            pen.text((x, line * _LINE), text, "black", font)
    for row, (name, pictures) in enumerate(shown.items()):
        y = top + row * (h + 4)
        pen.text((2, y + h // 2), name, "black", font)
        for column, picture in enumerate(pictures):
            whole.paste(picture, (left + column * (w + 4), y))
    return whole


def _small(picture: Image.Image) -> Image.Image:
    share = min(_SIDE / max(picture.size), 1)
    return picture.resize((round(picture.width * share), round(picture.height * share)), Image.Resampling.LANCZOS)


def _lines(
    text: str, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, w: int
) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font) <= w or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
