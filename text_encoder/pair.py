"""SDXL's two text encoders as one (Podell et al. 2023, arXiv:2307.01952, section 2.1)."""

import torch
from torch import nn

from text_encoder.embedding import TextEmbedding
from text_encoder.encoder import CLIPTextEncoder, chunk_mask
from text_encoder.prompt import Syntax, note_long


class PairedTextEncoder(nn.Module):
    """Two encoders side by side: their tokens (b, n, d1 + d2), the pooled vector of the second."""

    def __init__(self, first: CLIPTextEncoder, second: CLIPTextEncoder):
        super().__init__()
        if first.length != second.length:
            raise ValueError(
                f"paired text encoders must read equally many tokens, but these read {first.length} and "
                f"{second.length}; set model_max_length in both tokenizer_config.json files to the smaller one"
            )
        self.first = first
        self.second = second

    def forward(
        self,
        prompts: list[str],
        prompts_2: list[str] | None = None,
        *,
        clip_skip: int | None = None,
        syntax: Syntax = "plain",
    ) -> TextEmbedding:
        """As CLIPTextEncoder; the second encoder reads `prompts_2` where given, one for each prompt."""
        others = prompts if prompts_2 is None else prompts_2
        if len(others) != len(prompts):
            raise ValueError(f"got {len(prompts)} prompts but {len(others)} prompts_2; give one for each, or none")
        # chunks
        chunks = self.first.chunks(prompts, syntax)
        chunks_2 = self.second.chunks(others, syntax)
        note_long(prompts, chunks, self.first.length - 2)
        if prompts_2 is not None:
            note_long(prompts_2, chunks_2, self.second.length - 2)
        counts = [max(len(own), len(own_2)) for own, own_2 in zip(chunks, chunks_2, strict=True)]
        # tokens
        tokens, _ = self.first.encode(chunks, max(counts), clip_skip)
        tokens_2, pooled = self.second.encode(chunks_2, max(counts), clip_skip)
        mask = chunk_mask(counts, self.first.length, tokens.device)
        return TextEmbedding(torch.cat([tokens, tokens_2], dim=-1), mask, pooled)  # (b, n, d1 + d2)
