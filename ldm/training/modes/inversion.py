"""Textual inversion: the vectors of one new word (Gal et al. 2022, 2208.01618)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from configs.finetuning import FineTuneConfig
from ldm.model import LatentDiffusion
from ldm.training.modes.mode import RESULTS, Prepared, assembled, frozen, in_precision, tuned
from ldm.training.results import write_words
from ldm.training.tuned import Tuned
from text_encoder.words import learn_words


def prepare(model: LatentDiffusion, config: FineTuneConfig) -> Prepared:
    """Leaves one file with the vectors."""
    in_precision(frozen(model), config)
    word = config.inversion
    learn_words(model.text_encoder, word.word, start=word.start, vectors=word.vectors)
    module = tuned(model, config)

    def write(best: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(best, Tuned)
        result = config.result
        whole = assembled(model, best)
        return write_words(whole, word.word, folder, config.name, dtype=RESULTS[result.precision], result=result)

    return Prepared(module, write, decays=False)
