"""A byte-pair tokenizer of our own for a closed vocabulary, in the format of CLIP's."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from configs.training import RunConfig
from ldm.data.emoji_scenes.generator import EmojiScenes
from ldm.data.emoji_scenes.lexicon import words
from text_encoder.tokenizer import END, START, Tokenizer, byte_tokens

Pair = tuple[str, str]
Symbols = tuple[str, ...]


def build_tokenizer(vocabulary: Sequence[str], max_length: int) -> Tokenizer:
    """A tokenizer in which each word of the vocabulary is one token.

    Words that CLIP's pre-tokenizer cuts ("t-rex", "42") are one token for each of their parts. All other text falls
    back on smaller tokens, at last on bytes, so that nothing is unknown. Start and end are the two highest ids;
    padding repeats the end. The result depends on the set of words alone. ValueError if `max_length` leaves no room.
    """
    if max_length < 3:
        raise ValueError(f"max_length={max_length} leaves no room between start and end; use 3 or more")
    symbols = byte_tokens()
    plain = _tokenizer(symbols, [], max_length)
    merges = _learn({part for word in vocabulary for part in _parts(plain.encode(word), symbols)})
    tokens = list(dict.fromkeys([*symbols, *(left + right for left, right in merges)]))
    return _tokenizer(tokens, merges, max_length)


def tokenizer_of(run: RunConfig, scenes: EmojiScenes) -> Tokenizer:
    """The tokenizer of the run's world."""
    return build_tokenizer(words(scenes.world), run.text.model.max_length)


def _tokenizer(tokens: list[str], merges: list[Pair], max_length: int) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    roles = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings: dict[str, Any] = {
        role: {"content": token, "normalized": True, "special": True} for role, token in roles.items()
    }
    return Tokenizer(vocabulary, merges, {**settings, "model_max_length": max_length})


def _parts(ids: list[int], symbols: list[str]) -> list[Symbols]:
    """The bytes of a word, cut behind each that ends a part."""
    parts: list[list[str]] = [[]]
    for symbol in (symbols[index] for index in ids):
        parts[-1].append(symbol)
        if symbol.endswith("</w>"):
            parts.append([])
    return [tuple(part) for part in parts if part]


def _learn(parts: set[Symbols]) -> list[Pair]:
    """Merges, the most frequent pair first, until every part is one symbol.

    A merge may form a pair that an earlier one joins, and an encoder would then do that first: so after each new merge
    every part is brought to where an encoder with the merges so far ends. That way the last state is the encoder's.
    """
    ranks: dict[Pair, int] = {}
    state = {part: part for part in sorted(parts)}
    counts = Counter(pair for part in state for pair in _pairs(part))
    while pair := max((pair for pair in counts if counts[pair] > 0), key=lambda p: (counts[p], p), default=None):
        ranks[pair] = len(ranks)
        for part, now in state.items():
            if pair in _pairs(now):
                after = state[part] = _merged(now, ranks)
                counts.subtract(_pairs(now))
                counts.update(_pairs(after))
        counts = +counts
    return list(ranks)


def _merged(symbols: Symbols, ranks: dict[Pair, int]) -> Symbols:
    """Joins the pair of the lowest rank, leftmost first, until no pair has one: what BPE encoders do."""
    while known := [(ranks[pair], place) for place, pair in enumerate(_pairs(symbols)) if pair in ranks]:
        place = min(known)[1]
        symbols = (*symbols[:place], symbols[place] + symbols[place + 1], *symbols[place + 2 :])
    return symbols


def _pairs(symbols: Symbols) -> list[Pair]:
    return list(pairwise(symbols))
