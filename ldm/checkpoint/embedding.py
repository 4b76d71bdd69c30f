"""Textual inversions in every layout people have -> words that the text encoder of a model knows."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.family import described
from ldm.checkpoint.files import listed
from ldm.checkpoint.kinds import EMBEDDING_FILES, kind_of, word_of
from ldm.checkpoint.source import FLOATS, Source, open_source
from text_encoder import CLIPTextEncoder, PairedTextEncoder
from text_encoder.inversion import add_words, check_words, learned_words, remove_words

A1111 = "string_to_param.*"
UNNAMED = ("", "emb_params")  # a tensor by itself; the file's name is the word
PAIR = {"clip_l": "clip_l", "clip_g": "clip_g", "text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
MOST = 1000  # words in a file, vectors of a word

Vectors = Mapping[str, Tensor]  # (n, d) under "", or under "clip_l" and "clip_g" for SDXL's two encoders
TextEncoder = CLIPTextEncoder | PairedTextEncoder


def load_embedding(encoder: TextEncoder, source: Any, token: str | list[str] | None = None) -> list[str]:
    """Teaches a text encoder the words of a textual inversion and returns them.

    source: a file, a folder with `learned_embeds.safetensors` or `.bin`, or what such a file holds (tensors by name, or
        one tensor). Known are {word: vectors}, A1111's `string_to_param`, a bare tensor, `emb_params`, and SDXL's pair
        `clip_l` and `clip_g`.
    token: the word to use in prompts, by default the file's own, or else its name, which for A1111's files goes first,
        as it does there. A word of n vectors is read as n tokens; a list of n tokens gives each of them one vector.

    Raises FileNotFoundError, and ValueError for a file of another kind or family and for words already known; then
    nothing is changed.
    """
    words, where = read_embedding(source)
    words = _renamed(words, token, where)
    encoders = _encoders(encoder)
    fitting = {word: _fitted(encoder, vectors, where) for word, vectors in words.items()}
    each = [{word: vectors[i] for word, vectors in fitting.items()} for i in range(len(encoders))]
    for one, own in zip(encoders, each, strict=True):
        check_words(one, own)
    for one, own in zip(encoders, each, strict=True):
        add_words(one, own)
    return list(words)


def unload_embedding(encoder: TextEncoder, token: str | list[str] | None = None) -> None:
    """Makes a text encoder forget words, by default all it was taught. ValueError for a word it was not taught."""
    encoders = _encoders(encoder)
    known = list(learned_words(encoders[0]))
    gone = known if token is None else [token] if isinstance(token, str) else list(token)
    if unknown := [word for word in gone if word not in known]:
        have = f"loaded are {listed(known)}" if known else "none is loaded"
        raise ValueError(f"no embedding {unknown[0]!r} is loaded; {have}")
    for one in encoders if gone else ():
        remove_words(one, gone)


def embedding_record(encoder: TextEncoder) -> list[dict[str, Any]]:
    """Word, number of vectors and SHA-256 of their float32 values, of each word that was taught, as plain JSON."""
    first, *others = [learned_words(one) for one in _encoders(encoder)]
    record = []
    for word, vectors in sorted(first.items()):
        digest = hashlib.sha256()
        for tensor in (vectors, *(own[word] for own in others)):
            digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
        record.append({"word": word, "vectors": len(vectors), "sha256": digest.hexdigest()})
    return record


def _encoders(encoder: TextEncoder) -> tuple[CLIPTextEncoder, ...]:
    return (encoder.first, encoder.second) if isinstance(encoder, PairedTextEncoder) else (encoder,)


# reading


def read_embedding(source: Any) -> tuple[dict[str, Vectors], str]:
    """The words of a source, as in `load_embedding`, each with its vectors (n, d), and what to call the source.

    Raises as `load_embedding` does for what is no textual inversion.
    """
    words, where = _words(source)
    return {word: {part: _rows(tensor, where) for part, tensor in own.items()} for word, own in words.items()}, where


def _words(source: Any) -> tuple[dict[str, Vectors], str]:
    """The words of a source with their vectors, and what to call the source in messages."""
    if isinstance(source, Tensor):
        return {"": {"": source}}, "the tensor"
    if isinstance(source, Mapping):
        name = source.get("name")
        return _named(_flat(source), name if isinstance(name, str) else "", "the dictionary"), "the dictionary"
    path = _file(Path(source))
    opened = open_source(path)
    _refuse_others(opened)
    tensors = {name: opened.tensor(name) for name, entry in opened.entries.items() if entry.dtype in FLOATS}
    return _named(tensors, opened.metadata.get("name", ""), str(path), word_of(path, opened.metadata)), str(path)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in EMBEDDING_FILES:
        if (path / name).exists():
            return path / name
    raise FileNotFoundError(
        f"{path} has neither {' nor '.join(EMBEDDING_FILES)}; name the file of the embedding itself"
    )


def _flat(source: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a dictionary, those of dictionaries in it under "outer.inner"."""
    flat: dict[str, Any] = {}
    for name, value in source.items():
        flat |= (
            {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return {name: value for name, value in flat.items() if isinstance(value, Tensor) and value.is_floating_point()}


def _refuse_others(opened: Source) -> None:
    """Raises CheckpointError for a file of many tensors or of large ones, before any of them is read."""
    kind, _ = kind_of(opened.entries, opened.metadata)
    if kind and not kind.startswith("a textual inversion"):
        raise CheckpointError(f"{opened.path} is {kind}, no textual inversion")
    shapes = {name: entry.shape for name, entry in opened.entries.items() if entry.dtype in FLOATS}
    alike = all(1 <= len(shape) <= 2 and (len(shape) == 1 or shape[0] <= MOST) for shape in shapes.values())
    if A1111 not in shapes and not (alike and 1 <= len(shapes) <= MOST):
        raise CheckpointError(
            f"{opened.path} is no textual inversion, which holds the vectors of a word: it has "
            f"{len(opened.entries)} tensors, such as {listed(list(opened.entries), 3)}"
        )


def _named(tensors: Vectors, name: str, where: str, stem: str = "") -> dict[str, Vectors]:
    """Word -> vectors, from whichever layout the tensors are in."""
    if A1111 in tensors:
        return {stem or name: {"": tensors[A1111]}}
    if set(tensors) <= set(PAIR):
        return {stem: {PAIR[part]: tensor for part, tensor in tensors.items()}}
    if len(tensors) == 1 and next(iter(tensors)) in UNNAMED:
        return {stem: {"": next(iter(tensors.values()))}}
    if not tensors:
        raise CheckpointError(f"{where} holds no vectors of a word")
    return {word: {"": tensor} for word, tensor in tensors.items()}


def _rows(tensor: Tensor, where: str) -> Tensor:
    """Vectors (n, d), also from a single one (d,)."""
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim != 2 or not rows.numel():
        raise CheckpointError(f"{where}: the vectors of a word are (n, d), not {tuple(tensor.shape)}")
    if not rows.isfinite().all():
        raise CheckpointError(f"{where}: its vectors hold NaN or infinity; the embedding is damaged, fetch it again")
    return rows


def _renamed(words: dict[str, Vectors], token: str | list[str] | None, where: str) -> dict[str, Vectors]:
    if token is None:
        if "" in words:
            raise ValueError(f"{where} names no word: pass token=, such as token='<cat-toy>'")
        return words
    if len(words) > 1:
        raise ValueError(f"{where} holds the words {listed(list(words))}: leave token out")
    (vectors,) = words.values()
    if isinstance(token, str):
        return {token: vectors}
    if len(set(token)) != len(token) or any(len(tensor) != len(token) for tensor in vectors.values()):
        counts = " and ".join(str(len(tensor)) for tensor in vectors.values())
        raise ValueError(f"{where} holds {counts} vectors: pass as many different tokens, not {token}, or a single one")
    return {word: {part: rows[i : i + 1] for part, rows in vectors.items()} for i, word in enumerate(token)}


# fitting


def _fitted(encoder: TextEncoder, vectors: Vectors, where: str) -> list[Tensor]:
    """The vectors for each of the model's encoders; ValueError naming the family they are for, if it is another."""
    encoders = _encoders(encoder)
    own = list(vectors.values())
    if len(own) == 2:
        own = [vectors["clip_l"], vectors["clip_g"]]
        if len(own[0]) != len(own[1]):
            raise CheckpointError(f"{where} holds {len(own[0])} vectors as clip_l but {len(own[1])} as clip_g")
    found = sum(tensor.shape[1] for tensor in own)
    if len(own) == 2 and encoders[-1].policy.pooled:  # the refiner has SDXL's second encoder alone
        own = own[-len(encoders) :]
    widths = [one.model.config.width for one in encoders]
    if [tensor.shape[1] for tensor in own] != widths:
        raise ValueError(
            f"{where} is an embedding for text of width {described(found)}, but the text of this model has the width "
            f"{described(sum(widths))}: take an embedding made for its family"
        )
    return own
