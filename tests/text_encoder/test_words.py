"""Words that are learned: only their vectors move, as they would in a table that is trained whole."""

import hashlib

import pytest
import torch
from torch.testing import assert_close

from configs.architecture import TextEncoderConfig
from text_encoder import PENULTIMATE, CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from text_encoder.inversion import add_words, learned_words
from text_encoder.words import NewWords, forget_words, learn_words, vectors_of

EXACT = {"rtol": 0, "atol": 0}
PROMPTS = ["a <Moon> cat, <moon>", "a cat"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.clip()


def make(tokenizer, width=16, vocabulary=49408, **policy):
    torch.manual_seed(width)
    config = TextEncoderConfig(width=width, layers=2, heads=2, mlp_width=16, vocabulary=vocabulary)
    model = CLIPTextModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # or the means of tokens, which emphasis divides by, would all be 0
            parameter.data = 0.1 * torch.randn(parameter.shape) + ("norm" in name and name.endswith("weight"))
    return CLIPTextEncoder(tokenizer, model, **policy)


@pytest.fixture(params=[49408, 49410])  # as many rows as tokens, and two to spare
def encoder(request, tokenizer):
    return make(tokenizer, vocabulary=request.param)


@pytest.fixture
def pair(tokenizer):
    return PairedTextEncoder(make(tokenizer, policy=PENULTIMATE), make(tokenizer, 24, policy=PENULTIMATE))


def table(encoder):
    return encoder.model.text_model.embeddings.token_embedding.weight.detach()


def digest(encoder):
    return hashlib.sha256(table(encoder)[:49408].contiguous().numpy().tobytes()).hexdigest()


def rows_of(encoder, text):
    return table(encoder)[encoder.tokenizer.encode(text)]


def test_gradients_are_those_of_the_whole_table(encoder, tokenizer):
    (words,) = learn_words(encoder, "<moon>", start="cat", vectors=2)
    words.rows.data += torch.randn(2, 16)
    whole = make(tokenizer, vocabulary=encoder.inversions.vocabulary)
    add_words(whole, {"<moon>": words.rows.detach()})
    for one in (encoder, whole):
        one(PROMPTS).tokens.square().mean().backward()
    ids = encoder.tokenizer.encode("<moon>")
    gradient = whole.model.text_model.embeddings.token_embedding.weight.grad
    assert_close(words.rows.grad, gradient[ids])
    assert words.rows.grad.abs().min() > 0
    assert gradient.abs().sum(1).count_nonzero() > len(ids)  # which the others' rows would have moved by
    assert_close(encoder(PROMPTS).tokens, whole(PROMPTS).tokens, **EXACT)


def test_nothing_else_moves_whatever_the_decay(encoder):
    before, plain = digest(encoder), encoder(["a cat"]).tokens.detach()
    (words,) = learn_words(encoder, "<moon>", vectors=2)
    start = words.rows.detach().clone()
    learning = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert [id(parameter) for parameter in learning] == [id(words.rows)]
    assert words.rows.dtype == torch.float32
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        encoder(PROMPTS).tokens.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (words.rows - start).abs().min() > 0.01
    assert digest(encoder) == before
    assert_close(encoder(["a cat"]).tokens, plain, **EXACT)


def test_what_was_learned_and_forgetting_it(encoder, tokenizer):
    before, config, table_before = encoder(PROMPTS).tokens.detach(), encoder.model.config, table(encoder).clone()
    names = list(encoder.state_dict())
    (words,) = learn_words(encoder, "<moon>", start="cat", vectors=3)
    assert len(encoder.tokenizer.encode("<moon>")) == 3
    words.rows.data.normal_()
    taught = encoder(PROMPTS).tokens.detach()
    found = vectors_of(encoder)
    assert_close(found, {"<moon>": (words.rows.detach(),)}, **EXACT)
    forget_words(encoder)
    assert vectors_of(encoder) == {}
    assert encoder.tokenizer is tokenizer
    assert encoder.model.config == config
    assert learned_words(encoder) == {}
    assert list(encoder.state_dict()) == names
    assert_close(table(encoder), table_before, **EXACT)
    assert_close(encoder(PROMPTS).tokens, before, **EXACT)
    add_words(encoder, {word: vectors[0] for word, vectors in found.items()})  # a file read again
    assert_close(encoder(PROMPTS).tokens, taught, **EXACT)
    forget_words(encoder)  # nothing is being learned
    assert list(learned_words(encoder)) == ["<moon>"]


def test_what_vectors_begin_with(encoder):
    (words,) = learn_words(encoder, "<moon>", start="toy cat", vectors=2)
    mean = rows_of(encoder, "toy cat").mean(0)
    assert_close(words.rows.detach(), mean.expand(2, -1))
    forget_words(encoder)
    # drawn: like the table's rows, by the seed and the word
    (drawn,) = learn_words(encoder, "<moon>", vectors=20)
    lengths = table(encoder)[:49408].norm(dim=1)
    assert 0.7 * lengths.mean() < drawn.rows.norm(dim=1).mean() < 1.3 * lengths.mean()
    first = drawn.rows.detach().clone()
    for seed, word, same in ((0, "<moon>", True), (1, "<moon>", False), (0, "<sun>", False)):
        forget_words(encoder)
        (again,) = learn_words(encoder, word, vectors=20, seed=seed)
        assert torch.equal(again.rows, first) == same


def test_beside_words_that_are_known(encoder):
    add_words(encoder, {"<sun>": torch.ones(2, 16)})
    (words,) = learn_words(encoder, "<moon>", start="<sun>")
    assert_close(words.rows.detach(), torch.ones(1, 16))
    assert encoder(["<sun> and <moon>"]).tokens.shape == (1, 77, 16)
    forget_words(encoder)
    assert list(learned_words(encoder)) == ["<sun>"]
    assert_close(rows_of(encoder, "<sun>"), torch.ones(2, 16))


def test_a_pair_learns_both(pair):
    first, second = learn_words(pair, "<moon>", start="cat", vectors=2)
    assert [tuple(words.rows.shape) for words in (first, second)] == [(2, 16), (2, 24)]
    assert_close(second.rows.detach(), rows_of(pair.second, "cat").mean(0).expand(2, -1))
    out = pair(PROMPTS)
    (out.tokens.square().mean() + out.pooled.square().mean()).backward()
    assert all(words.rows.grad.abs().max() > 0 for words in (first, second))
    assert [tuple(rows.shape) for rows in vectors_of(pair)["<moon>"]] == [(2, 16), (2, 24)]
    forget_words(pair)
    assert vectors_of(pair) == {}
    assert not any(isinstance(module, NewWords) for module in pair.modules())


def test_half_precision_under_float32_vectors(tokenizer):
    encoder = make(tokenizer).bfloat16()
    (words,) = learn_words(encoder, "<moon>", start="cat")
    tokens = encoder(PROMPTS).tokens
    assert tokens.dtype == torch.bfloat16
    tokens.float().square().mean().backward()
    assert words.rows.dtype == words.rows.grad.dtype == torch.float32
    assert words.rows.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("word", "vectors", "message"),
    [("cat", 1, "'cat' is in the vocabulary already"), (" ", 1, "cannot stand in a prompt"), ("<new>", 0, "shape")],
)
def test_what_is_refused_changes_nothing(pair, word, vectors, message):
    with pytest.raises(ValueError, match=message):
        learn_words(pair, word, start="cat", vectors=vectors)
    assert vectors_of(pair) == {}
    assert all(parameter.requires_grad for parameter in pair.parameters())
    learn_words(pair, "<moon>")
    with pytest.raises(ValueError, match="'<moon>' is being learned already"):
        learn_words(pair, "<sun>")
