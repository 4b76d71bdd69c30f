"""Textual inversion: words whose embeddings were learned (Gal et al. 2022, arXiv:2208.01618), added and taken away."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from text_encoder.encoder import CLIPTextEncoder
from text_encoder.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Inversions:
    """The words an encoder has learned, and what it was before the first.

    words: the vectors (n, d) of each, which is read as n tokens.
    vocabulary: how many rows the embedding had. covered: those of them (k, d) from the first that a word has taken on;
        empty unless the embedding has more rows than the tokenizer has tokens.
    """

    tokenizer: Tokenizer
    vocabulary: int
    covered: Tensor
    words: Mapping[str, Tensor] = field(default_factory=dict)


def learned_words(encoder: CLIPTextEncoder) -> Mapping[str, Tensor]:
    """The words the encoder has been taught, with their vectors (n, d)."""
    return {} if encoder.inversions is None else encoder.inversions.words


def add_words(encoder: CLIPTextEncoder, words: Mapping[str, Tensor]) -> None:
    """Teaches the encoder words, each with its vectors (n, d).

    Raises ValueError, before anything is changed, if one of them does not fit; see `check_words`.
    """
    check_words(encoder, words)
    _set_words(encoder, {**learned_words(encoder), **{word: own.detach().clone() for word, own in words.items()}})


def remove_words(encoder: CLIPTextEncoder, words: Iterable[str]) -> None:
    """Makes the encoder forget these words; without the last, it is bit by bit what it was before the first."""
    gone = set(words)
    _set_words(encoder, {word: vectors for word, vectors in learned_words(encoder).items() if word not in gone})


def tokens_of(word: str, n: int) -> list[str]:
    """The tokens that a word of n vectors is read as: word, word_1, ..., word_(n-1)."""
    return [word, *(f"{word}_{i}" for i in range(1, n))]


def check_words(encoder: CLIPTextEncoder, words: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless the vectors fit the encoder and the words are new to it and to each other."""
    width = encoder.model.config.width
    taken = {token.lower() for token in _tokens(learned_words(encoder))}

    def known(token: str) -> bool:
        return encoder.tokenizer.token_id(token) is not None

    for word, vectors in words.items():
        if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:
            raise ValueError(f"the vectors of {word!r} have the shape {tuple(vectors.shape)}, expected (n, {width})")
        if not word.strip():
            raise ValueError(f"{word!r} cannot stand in a prompt: pass token= with a word, such as '<cat-toy>'")
        for token in tokens_of(word, len(vectors)):
            # words match in any case, so "Cat" would take the place of every "cat"
            if token.lower() in taken or any(map(known, (token, token.lower()))):
                raise ValueError(
                    f"the token {token!r} is in the vocabulary already: pass token= (in a shell, FILE:TOKEN) "
                    f"with another word, such as '<{word}>', or unload the embedding that has it"
                )
            taken.add(token.lower())


def _tokens(words: Mapping[str, Tensor]) -> list[str]:
    return [token for word, vectors in words.items() for token in tokens_of(word, len(vectors))]


def _set_words(encoder: CLIPTextEncoder, words: Mapping[str, Tensor]) -> None:
    """Builds tokenizer and embedding from the original ones and these words."""
    rows = _original_rows(encoder)
    before = encoder.inversions or Inversions(encoder.tokenizer, len(rows), rows[:0])
    if not words:
        encoder.tokenizer, encoder.inversions = before.tokenizer, None
        _set_embedding(encoder, rows)
        return
    tokens = _tokens(words)
    tokenizer = before.tokenizer.with_words(tokens)
    ids = [tokenizer.token_id(token) for token in tokens]
    first = min(index for index in ids if index is not None)
    covered = rows[first:].clone()
    rows = torch.cat([rows, rows.new_zeros(max(0, len(tokenizer) - len(rows)), rows.shape[1])])
    rows[ids] = torch.cat([vectors.to(rows) for vectors in words.values()])
    encoder.tokenizer, encoder.inversions = tokenizer, replace(before, covered=covered, words=words)
    _set_embedding(encoder, rows)


def _original_rows(encoder: CLIPTextEncoder) -> Tensor:
    """The embedding (v, d) without words, in its present precision and place."""
    weight, state = encoder.model.text_model.embeddings.token_embedding.weight.detach(), encoder.inversions
    if state is None:
        return weight
    return torch.cat([weight[: state.vocabulary - len(state.covered)], state.covered.to(weight)])


def _set_embedding(encoder: CLIPTextEncoder, rows: Tensor) -> None:
    embedding = encoder.model.text_model.embeddings.token_embedding
    embedding.weight = nn.Parameter(rows, requires_grad=embedding.weight.requires_grad)
    embedding.num_embeddings = len(rows)
    encoder.model.config = replace(encoder.model.config, vocabulary=len(rows))
