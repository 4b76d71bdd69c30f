"""What a text encoder gives, and what one is."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from text_encoder.prompt import Syntax


@dataclass(frozen=True)
class TextEmbedding:
    """b prompts as vectors.

    `tokens` (b, n, d) is what cross-attention reads; `mask` (b, n) bool marks with True what it may read, None for all
    of it; `pooled` (b, p) is one vector for each prompt, None where the model family uses none.
    """

    tokens: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None


class TextEncoder(Protocol):
    """Encodes all prompts of one call to the same length n, whatever theirs.

    `clip_skip=k` reads the hidden states k layers earlier than the model family does, as in diffusers (A1111 counts
    one more). `syntax="plain"` takes every character literally, "a1111" reads weights and BREAK.
    """

    def __call__(
        self, prompts: list[str], *, clip_skip: int | None = None, syntax: Syntax = "plain"
    ) -> TextEmbedding: ...
