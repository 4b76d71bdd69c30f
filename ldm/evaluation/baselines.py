"""Drawing functions to compare a model with: what knows no composition, and what knows no prompt."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.lexicon import split_words
from ldm.data.emoji_scenes.rendering import render
from vae.pixels import from_pil

Draw = Callable[[list[str], list[int]], Tensor]  # prompts and one seed each -> (b, 3, s, s) in [-1, 1]


class Retrieval:
    """Answers a prompt with the training scene whose caption shares most words with it; seeds change nothing.

    The overlap is that of Jaccard: words in both over words in either. Of equals the first is taken.
    """

    def __init__(self, data: EmojiScenes, captions: int = 2000, size: int = 128) -> None:
        if data.split != "train":
            raise ValueError(f"Retrieval answers from what training shows, not from the split {data.split!r}.")
        self.data, self.size = data, size
        self.words = [frozenset(split_words(data.caption(i))) for i in range(captions)]

    def __call__(self, prompts: list[str], seeds: list[int]) -> Tensor:
        """(b, 3, size, size) in [-1, 1]."""
        return from_pil([render(self.data[self.nearest(prompt)], self.size) for prompt in prompts])

    def nearest(self, prompt: str) -> int:
        """The number of the scene in the training split."""
        wanted = frozenset(split_words(prompt))
        return max(range(len(self.words)), key=lambda i: (_overlap(wanted, self.words[i]), -i))


def unconditional(draw: Draw) -> Draw:
    """The same model, told nothing."""
    return lambda prompts, seeds: draw([""] * len(prompts), seeds)


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(len(a | b), 1)


def in_batches(draw: Draw, prompts: Sequence[str], seeds: Sequence[int], batch: int) -> Tensor:
    """All pictures, `batch` at a time, on the CPU in float32."""
    parts = range(0, len(prompts), batch)
    drawn = [draw(list(prompts[i : i + batch]), list(seeds[i : i + batch])).float().cpu() for i in parts]
    return torch.cat(drawn)
