"""New words whose vectors learn while the rest of an embedding stays to the bit (Gal et al. 2022, arXiv:2208.01618)."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from text_encoder.encoder import CLIPTextEncoder
from text_encoder.inversion import add_words, check_words, remove_words, tokens_of
from text_encoder.pair import PairedTextEncoder


class NewWords(nn.Module):
    """A token embedding, ids (b, n) -> (b, n, d), of which only the vectors of new words can be trained.

    base: the whole table (v, d), frozen; neither gradients nor a decay reach it. rows: the words' vectors (k, d),
    float32, whose ids follow each other from `first` on. words: how many vectors each has.
    """

    def __init__(self, base: nn.Embedding, first: int, words: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rows = nn.Parameter(torch.cat(list(words.values())).to(base.weight.device, torch.float32, copy=True))
        self.first, self.words = first, {word: len(vectors) for word, vectors in words.items()}

    @property
    def weight(self) -> Tensor:
        """The table, for whoever asks an embedding for its precision or device."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.base(ids)
        place = ids - self.first
        is_new = (place >= 0) & (place < len(self.rows))
        learned = F.embedding(place.clamp(0, len(self.rows) - 1), self.rows)
        return torch.where(is_new[..., None], learned.to(embedded.dtype), embedded)

    def vectors(self) -> dict[str, Tensor]:
        """Word -> (n, d), copied, float32 on the CPU."""
        parts = torch.split(self.rows.detach().cpu().float().clone(), list(self.words.values()))
        return dict(zip(self.words, parts, strict=True))


Encoder = CLIPTextEncoder | PairedTextEncoder


def learn_words(
    encoder: Encoder, word: str, *, start: str = "", vectors: int = 1, seed: int = 0
) -> tuple[NewWords, ...]:
    """Teaches a new word whose vectors can be trained, each encoder of a pair its own; returns their embeddings.

    The word is then read in prompts as `vectors` tokens. Nothing else of the encoders requires gradients any longer.

    start: known words; each vector begins as the mean of their tokens' rows. Without any, it is drawn from the normal
        distribution that has the mean and the spread of the table's rows in each direction, by the seed.

    Raises ValueError for a word that is known, or while others are being learned.
    """
    encoders = _encoders(encoder)
    if new := [name for one in _embeddings(encoder) for name in one.words]:
        raise ValueError(f"{new[0]!r} is being learned already: forget_words(encoder) first")
    begin = [_start(one, start, vectors, f"{seed}\x1f{word}\x1f{i}") for i, one in enumerate(encoders)]
    for one, rows in zip(encoders, begin, strict=True):
        check_words(one, {word: rows})
    encoder.requires_grad_(False)
    return tuple(_learn(one, {word: rows}) for one, rows in zip(encoders, begin, strict=True))


def vectors_of(encoder: Encoder) -> dict[str, tuple[Tensor, ...]]:
    """The words being learned, each with its vectors (n, d) in every encoder, copied, float32 on the CPU."""
    each = [one.vectors() for one in _embeddings(encoder)]
    return {word: tuple(own[word] for own in each) for word in each[0]} if each else {}


def forget_words(encoder: Encoder) -> None:
    """Takes the words out again that are being learned; the encoder is then what it was, bit for bit, but frozen."""
    for one in _encoders(encoder):
        embeddings = one.model.text_model.embeddings
        learning: nn.Module = embeddings.token_embedding
        if isinstance(learning, NewWords):
            embeddings.token_embedding = learning.base
            remove_words(one, learning.words)


def _learn(encoder: CLIPTextEncoder, words: Mapping[str, Tensor]) -> NewWords:
    add_words(encoder, words)
    tokens = [token for word, vectors in words.items() for token in tokens_of(word, len(vectors))]
    ids = [encoder.tokenizer.token_id(token) for token in tokens]
    first = ids[0]
    assert first is not None
    assert ids == list(range(first, first + len(ids))), "new tokens are numbered one after the other"
    embeddings = encoder.model.text_model.embeddings
    learning = NewWords(embeddings.token_embedding, first, words)
    embeddings.token_embedding = learning  # type: ignore[assignment]
    return learning


def _start(encoder: CLIPTextEncoder, start: str, n: int, key: str) -> Tensor:
    """The vectors (n, d) that a word begins with, float32."""
    table = encoder.model.text_model.embeddings.token_embedding.weight.detach()
    if tokens := encoder.tokenizer.encode(start):
        return table[tokens].float().mean(0).repeat(n, 1)
    draw = torch.Generator().manual_seed(int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 1)
    std, mean = torch.std_mean(table.float(), dim=0)
    return mean + std * torch.randn(n, table.shape[1], generator=draw).to(table.device)


def _encoders(encoder: Encoder) -> tuple[CLIPTextEncoder, ...]:
    return (encoder.first, encoder.second) if isinstance(encoder, PairedTextEncoder) else (encoder,)


def _embeddings(encoder: Encoder) -> Iterator[NewWords]:
    for one in _encoders(encoder):
        embedding: nn.Module = one.model.text_model.embeddings.token_embedding
        if isinstance(embedding, NewWords):
            yield embedding
