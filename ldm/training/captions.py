"""Captions as the networks read them, and the scenes that training does not show."""

from __future__ import annotations

from dataclasses import replace

from ldm.data.emoji_scenes.generator import EmojiScenes
from text_encoder.tokenizer import Tokenizer


def token_ids(tokenizer: Tokenizer, caption: str) -> list[int]:
    """Token ids with start, end and padding; what is too long is cut."""
    n = tokenizer.max_length
    return tokenizer.frame(tokenizer.encode(caption)[: n - 2], n)


def unseen(scenes: EmojiScenes) -> EmojiScenes:
    """Other scenes of the same world, of training's combinations."""
    return replace(scenes, split="iid", fate="validation")
