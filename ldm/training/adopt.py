"""Going on from a finished model: its parts become what the stages of a run have left."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from configs.training import RunConfig
from ldm.checkpoint import load_folder, weights_hash
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.training.bpe import tokenizer_of
from ldm.training.fingerprint import fingerprint, mark
from ldm.training.weights import save_weights
from text_encoder import CLIPTextEncoder
from text_encoder.tokenizer import Tokenizer

ANY_LENGTH = 10**9  # steps: what is taken as it is stays finished, however long the run file's stage gets


def adopt(folder: Path, run: RunConfig, scenes: EmojiScenes, output: Path) -> None:
    """Fills `output` with the parts of the model in `folder`, a diffusers folder, so that only the denoiser is trained;
    does nothing where that was done before.

    Raises ValueError for a model of another architecture or of other words, and if `output` holds another run already.
    """
    mine, source = output / "denoiser", weights_hash(folder)
    note, start = mine / "from.txt", mine / "start.safetensors"
    begun = note.exists() and note.read_text().strip() == source
    if begun and start.exists():
        return
    if not begun and any((output / stage).exists() for stage in ("autoencoder", "text", "denoiser")):
        raise ValueError(
            f"{output} holds a run already: go on with it by leaving out --from, or choose another --output"
        )
    model = load_folder(folder, dtype=torch.float32)
    encoder = model.text_encoder
    if not isinstance(encoder, CLIPTextEncoder) or not _same_words(encoder, run, scenes):
        raise ValueError(f"{folder} was made for other words than those of this run's world: take its own run file")
    _require("autoencoder", model.autoencoder.config, run.autoencoder.model, folder)
    _require("unet", model.unet.config, run.denoiser.model, folder)
    mine.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{source}\n")  # before the parts, of which the last one tells that all are there
    save_weights(model.autoencoder, output / "autoencoder" / "autoencoder.safetensors")
    save_weights(encoder.model, output / "text" / "text.safetensors")
    for stage in ("classifier", "autoencoder", "text"):
        (output / stage).mkdir(exist_ok=True)
        mark(output / stage, ANY_LENGTH, fingerprint(run, stage))
    save_weights(model.unet, start)


def _same_words(encoder: CLIPTextEncoder, run: RunConfig, scenes: EmojiScenes) -> bool:
    return _files(encoder.tokenizer) == _files(tokenizer_of(run, scenes))


def _files(tokenizer: Tokenizer) -> list[bytes]:
    """All of a tokenizer's tokens with their ids, and its merges in order."""
    with TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return [(Path(folder) / name).read_bytes() for name in ("vocab.json", "merges.txt")]


def _require(part: str, found: object, wanted: object, folder: Path) -> None:
    if found != wanted:
        raise ValueError(f"the {part} of {folder} is built otherwise than in this run file ({found} against {wanted})")
