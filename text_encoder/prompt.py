"""Prompts as chunks of weighted tokens. Standard library only."""

import logging
import math
import re
from collections.abc import Callable
from itertools import groupby
from typing import Literal

Syntax = Literal["plain", "a1111"]
Section = list[tuple[str, float]]  # texts with their weights, between two BREAKs
Chunk = list[tuple[int, float]]  # token ids with their weights, without start, end and padding

ROUND, SQUARE = 1.1, 1 / 1.1  # the weight of (x) and of [x]
MAX_DEPTH = 100  # of brackets: keeps parsing linear, and 1.1 to this power is beyond any use
COMMA_REACH = 20  # a full chunk ends at its last comma if that is one of its last 20 tokens

_PIECE = re.compile(
    r"""
    \\ (?P<escaped> [()\[\]\\] )?
    | : \s* (?P<weight> [+-]?[.\d]+ ) \s* \)
    | (?P<text> [^\\()\[\]:]+ )
    | [()\[\]:]
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")

logger = logging.getLogger(__name__)


def parse(prompt: str) -> list[Section]:
    r"""Reads A1111's weights: `(x)` 1.1, `(x:1.3)` 1.3, `[x]` 1/1.1, nesting multiplies, a backslash makes literal.

    A bracket left open acts to the end, a stray closing one is literal. Neighbours of equal weight are joined; `BREAK`
    starts a new section. ValueError for a weight that is no finite number, with its place, and over 100 open brackets.
    """
    parts: list[tuple[str | None, float]] = []  # None stands for BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, weight: float) -> None:
        start = opened[bracket].pop()
        parts[start:] = [(text, old * weight) for text, old in parts[start:]]

    for piece in _PIECE.finditer(prompt):
        match piece[0]:
            case "(" | "[" as bracket:
                opened[bracket].append(len(parts))
                _check_depth(opened[bracket])
            case ")" if opened["("]:
                close("(", ROUND)
            case "]" if opened["["]:
                close("[", SQUARE)
            case _ if piece["weight"] and opened["("]:
                close("(", _number(piece))
            case _:
                parts += _literal(piece)
    while opened["("]:
        close("(", ROUND)
    while opened["["]:
        close("[", SQUARE)
    return _sections(parts)


def _check_depth(opened: list[int]) -> None:
    if len(opened) > MAX_DEPTH:
        raise ValueError(
            f"the prompt opens over {MAX_DEPTH} brackets without closing them; put a backslash before literal ones"
        )


def _number(piece: re.Match[str]) -> float:
    text, place = piece["weight"], piece.start("weight")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"{text!r} at character {place} of the prompt is no weight; write a number as in (word:1.3)")
    return weight


def _literal(piece: re.Match[str]) -> list[tuple[str | None, float]]:
    if piece[0].startswith("\\"):
        return [(piece["escaped"] or "", 1.0)]
    if piece["text"] is None:
        return [(piece[0], 1.0)]
    first, *rest = _BREAK.split(piece["text"])
    return [(first, 1.0), *(part for text in rest for part in ((None, 1.0), (text, 1.0)))]


def _sections(parts: list[tuple[str | None, float]]) -> list[Section]:
    sections: list[list[tuple[str, float]]] = [[]]
    for text, weight in parts:
        if text is None:
            sections.append([])
        elif text:
            sections[-1].append((text, weight))
    return [
        [("".join(text for text, _ in run), weight) for weight, run in groupby(section, key=lambda part: part[1])]
        for section in sections
    ]


def split(
    prompt: str, encode: Callable[[str], list[int]], size: int, syntax: Syntax = "plain", comma: int | None = None
) -> list[Chunk]:
    """Tokenises a prompt into one or more chunks of at most `size` tokens; nothing is lost.

    A1111's rules: each part is tokenised alone; BREAK ends a chunk, if need be an empty one; `comma` is the id of ",":
    where a chunk is full, what follows a comma among its last 20 tokens moves on.
    """
    if syntax not in ("plain", "a1111"):
        raise ValueError(f"prompt syntax {syntax!r} is unknown; use 'plain' or 'a1111'")
    if syntax == "plain":
        return _cut([(token, 1.0) for token in encode(prompt)], size, None)
    chunks: list[Chunk] = []
    for section in parse(prompt):
        chunks += _cut([(token, weight) for text, weight in section for token in encode(text)], size, comma)
    return chunks if chunks[-1] or len(chunks) == 1 else chunks[:-1]


def _cut(tokens: Chunk, size: int, comma: int | None) -> list[Chunk]:
    chunks = []
    while len(tokens) > size:
        end = _chunk_end([token for token, _ in tokens[: size + 1]], comma)
        chunks.append(tokens[:end])
        tokens = tokens[end:]
    return [*chunks, tokens]


def _chunk_end(ids: list[int], comma: int | None) -> int:
    """Where to end a chunk, given its tokens and the one after them; a comma that does not fit starts the next."""
    size = len(ids) - 1
    near = ids[max(0, size - COMMA_REACH) : size]
    if comma not in near or ids[size] == comma:
        return size
    return size - near[::-1].index(comma)


def note_long(prompts: list[str], chunks: list[list[Chunk]], size: int) -> None:
    """Tells of each prompt with more tokens than CLIP reads at once."""
    for prompt, own in zip(prompts, chunks, strict=True):
        count = sum(map(len, own))
        if count > size:
            start = prompt if len(prompt) <= 40 else prompt[:39] + "…"
            logger.warning("%r has %d tokens; read in %d chunks of up to %d", start, count, len(own), size)
