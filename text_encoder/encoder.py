"""One tokenizer and one CLIP text model as a text encoder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from text_encoder.clip import CLIPTextModel
from text_encoder.embedding import TextEmbedding
from text_encoder.prompt import Chunk, Syntax, note_long, split
from text_encoder.tokenizer import Tokenizer

if TYPE_CHECKING:
    from text_encoder.inversion import Inversions


@dataclass(frozen=True)
class Policy:
    """Which hidden states a model family reads: those `skip` layers before the last, with the final norm or without."""

    skip: int
    norm: bool
    pooled: bool  # whether the family conditions on the pooled vector too


LAST = Policy(skip=0, norm=True, pooled=False)  # SD 1 and 2 (whose file lacks the last layer already)
PENULTIMATE = Policy(skip=1, norm=False, pooled=True)  # SDXL and its refiner


class CLIPTextEncoder(nn.Module):
    """Prompts to a TextEmbedding: tokens (b, n, d) with n = 77 times the chunks of the longest prompt.

    A prompt of more than 75 tokens is read in chunks that are encoded apart, with a note in the log. Shorter prompts of
    the same call are filled up with encoded empty chunks, which the mask hides. `pooled` is that of the first chunk.
    """

    def __init__(self, tokenizer: Tokenizer, model: CLIPTextModel, policy: Policy = LAST):
        super().__init__()
        if len(tokenizer) > model.config.vocabulary:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the text encoder only {model.config.vocabulary}; "
                "take the tokenizer that belongs to this text encoder"
            )
        self.tokenizer = tokenizer
        self.model = model
        self.policy = policy
        self.inversions: Inversions | None = None
        self.length = min(tokenizer.max_length, model.config.max_length)  # of a chunk, with start and end
        if self.length < 3:
            raise ValueError(
                f"{self.length} tokens at a time leave no room between start and end; "
                "set model_max_length in tokenizer_config.json to 77"
            )

    def forward(self, prompts: list[str], *, clip_skip: int | None = None, syntax: Syntax = "plain") -> TextEmbedding:
        """b prompts -> tokens (b, n, d), pooled (b, p) or None; see TextEncoder. ValueError on an empty list."""
        chunks = self.chunks(prompts, syntax)
        note_long(prompts, chunks, self.length - 2)
        count = max(map(len, chunks))
        tokens, pooled = self.encode(chunks, count, clip_skip)
        mask = chunk_mask([len(own) for own in chunks], self.length, tokens.device)
        return TextEmbedding(tokens, mask, pooled if self.policy.pooled else None)

    def chunks(self, prompts: list[str], syntax: Syntax) -> list[list[Chunk]]:
        """Each prompt as one or more chunks of at most 75 weighted tokens."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError('a text encoder takes a list of at least one prompt, such as ["a cat"] or [""]')
        tokenizer, size = self.tokenizer, self.length - 2
        return [split(prompt, tokenizer.encode, size, syntax, tokenizer.comma) for prompt in prompts]

    def encode(self, chunks: list[list[Chunk]], count: int, clip_skip: int | None) -> tuple[Tensor, Tensor]:
        """b prompts, filled up to `count` chunks each -> tokens (b, count * 77, d), pooled (b, p)."""
        rows = [chunk for own in chunks for chunk in own + [[]] * (count - len(own))]
        framed = [self.tokenizer.frame([token for token, _ in row], self.length) for row in rows]
        ids = torch.tensor(framed, device=self.model.device)  # (b * count, 77)
        weights = torch.tensor([self._weights(row) for row in rows], device=ids.device)
        tokens, pooled = self.model(ids, self.policy.skip + (clip_skip or 0), self.policy.norm)
        tokens = weigh(tokens, weights.to(tokens.device))
        tokens = tokens.reshape(len(chunks), count * self.length, -1)  # (b * count, 77, d) -> (b, count * 77, d)
        return tokens, pooled[::count]  # (b * count, p) -> (b, p)

    def _weights(self, chunk: Chunk) -> list[float]:
        return [1.0, *(weight for _, weight in chunk), *[1.0] * (self.length - 1 - len(chunk))]


def weigh(tokens: Tensor, weights: Tensor) -> Tensor:
    """z' = w z · mean(z) / mean(w z), means over each chunk: A1111's "original" emphasis.

    tokens (b, n, d), weights (b, n) -> (b, n, d). A chunk whose weights are all 1 is returned bit by bit.
    """
    z = tokens.float()
    scaled = z * weights[:, :, None]
    scaled = scaled * (z.mean((1, 2), keepdim=True) / scaled.mean((1, 2), keepdim=True))
    plain = (weights == 1).all(dim=1)[:, None, None]
    return torch.where(plain, tokens, scaled.to(tokens.dtype))


def chunk_mask(counts: list[int], length: int, device: torch.device) -> Tensor | None:
    """Hides the chunks beyond a prompt's own: counts of b prompts -> (b, max(counts) * length), None if all agree."""
    if len(set(counts)) == 1:
        return None
    own = torch.tensor(counts, device=device)[:, None]  # (b, 1)
    return (torch.arange(max(counts), device=device) < own).repeat_interleave(length, dim=1)
