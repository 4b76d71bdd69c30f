"""Going on from a finished model: its parts become what the stages of a run have left."""

from __future__ import annotations

from pathlib import Path

import torch

from configs.training import RunConfig
from ldm.checkpoint import load_folder
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.training.bpe import tokenizer_of
from ldm.training.weights import save_weights
from text_encoder import CLIPTextEncoder


def adopt(folder: Path, run: RunConfig, scenes: EmojiScenes, output: Path) -> None:
    """Fills `output` with the parts of the model in `folder`, a diffusers folder, so that only the denoiser is trained.

    Raises ValueError for a model of another architecture or of other words, and if `output` holds a run already.
    """
    if any((output / stage).exists() for stage in ("autoencoder", "text", "denoiser")):
        raise ValueError(
            f"{output} holds a run already: go on with it by leaving out --from, or choose another --output"
        )
    model = load_folder(folder, dtype=torch.float32)
    encoder = model.text_encoder
    if not isinstance(encoder, CLIPTextEncoder) or not _same_words(encoder, run, scenes):
        raise ValueError(f"{folder} was made for other words than those of this run's world: take its own run file")
    _require("autoencoder", model.autoencoder.config, run.autoencoder.model, folder)
    _require("unet", model.unet.config, run.denoiser.model, folder)
    save_weights(model.autoencoder, output / "autoencoder" / "autoencoder.safetensors")
    save_weights(encoder.model, output / "text" / "text.safetensors")
    save_weights(model.unet, output / "denoiser" / "start.safetensors")
    for stage in ("classifier", "autoencoder", "text"):
        (output / stage).mkdir(exist_ok=True)
        (output / stage / "finished").write_text(f"{getattr(run, stage).loop.steps}\n")


def _same_words(encoder: CLIPTextEncoder, run: RunConfig, scenes: EmojiScenes) -> bool:
    mine, text = tokenizer_of(run, scenes), scenes.caption(0)
    return len(mine) == len(encoder.tokenizer) and mine.encode(text) == encoder.tokenizer.encode(text)


def _require(part: str, found: object, wanted: object, folder: Path) -> None:
    if found != wanted:
        raise ValueError(f"the {part} of {folder} is built otherwise than in this run file ({found} against {wanted})")
