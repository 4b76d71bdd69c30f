"""Words taught to a text encoder, and taken away again, bit by bit."""

import copy

import pytest
import torch
from torch.testing import assert_close

from configs.architecture import TextEncoderConfig
from text_encoder import CLIPTextEncoder, CLIPTextModel, Tokenizer
from text_encoder.inversion import add_words, learned_words, remove_words

EXACT = {"rtol": 0, "atol": 0}
PROMPTS = ["a <Moon> cat, (a <moon>)", "a cat", "badge"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.clip()


@pytest.fixture(params=[49408, 49410])  # as many rows as tokens, and two to spare
def encoder(request, tokenizer):
    torch.manual_seed(0)
    config = TextEncoderConfig(width=16, layers=1, heads=2, mlp_width=16, vocabulary=request.param)
    return CLIPTextEncoder(tokenizer, CLIPTextModel(config))


def weight(encoder):
    return encoder.model.text_model.embeddings.token_embedding.weight.detach()


def vectors(n, seed=1):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))


def test_a_word_is_read_as_its_vectors(encoder):
    """Closed form: the embedded prompt holds the vectors in order, wherever the word stands and in any case."""
    moon, star = vectors(3), vectors(1, 2)
    add_words(encoder, {"<moon>": moon, "star word": star})
    for prompt, n in ((PROMPTS[0], 3), ("<moon>", 3), ("a STAR  word.", 1)):
        ids = torch.tensor(encoder.tokenizer.encode(prompt))
        rows = weight(encoder)[ids]
        place = next(i for i, index in enumerate(ids) if index >= 49408)
        assert_close(rows[place : place + n], moon if n == 3 else star, **EXACT)
    cat = encoder.tokenizer.encode("a cat")
    first, *rest = encoder.tokenizer.encode("<moon>")
    a = encoder.tokenizer.encode("a")
    assert encoder.tokenizer.encode("a <moon>a cat") == [*a, first, *rest, *cat]
    assert len(rest) == 2


def test_forgetting_restores_everything(encoder, tokenizer):
    before = weight(encoder).clone()
    expected, config = encoder(PROMPTS).tokens, encoder.model.config
    add_words(encoder, {"<moon>": vectors(3)})
    taught = encoder(PROMPTS).tokens
    assert not torch.equal(taught[0], expected[0])
    assert_close(taught[1:], expected[1:], **EXACT)
    add_words(encoder, {"<sun>": vectors(2, 3)})
    remove_words(encoder, ["<moon>"])
    assert_close(encoder(PROMPTS).tokens, expected, **EXACT)
    sun = encoder.tokenizer.encode("<sun>")
    assert_close(weight(encoder)[torch.tensor(sun)], vectors(2, 3), **EXACT)
    remove_words(encoder, ["<sun>"])
    assert_close(weight(encoder), before, **EXACT)
    assert encoder.tokenizer is tokenizer
    assert encoder.model.config == config
    assert learned_words(encoder) == {}


def test_words_follow_the_model_to_another_precision(encoder):
    before = weight(encoder).clone()
    add_words(encoder, {"<moon>": vectors(2)})
    encoder.to(torch.bfloat16)
    index = encoder.tokenizer.token_id("<moon>_1")
    assert_close(weight(encoder)[index], vectors(2)[1].bfloat16(), **EXACT)
    remove_words(encoder, ["<moon>"])
    assert_close(weight(encoder), before.bfloat16(), **EXACT)


@pytest.mark.parametrize(
    ("word", "n", "width", "message"),
    [
        ("cat", 1, 16, r"'cat' is in the vocabulary already: pass token="),
        ("Cat", 1, 16, "'Cat' is in the vocabulary"),  # would be read for every "cat"
        ("<MOON>", 1, 16, "'<MOON>' is in the vocabulary"),
        ("<moon>_1", 1, 16, "'<moon>_1' is in the vocabulary"),
        (" ", 1, 16, "cannot stand in a prompt"),
        ("<new>", 0, 16, r"shape \(0, 16\), expected \(n, 16\)"),
        ("<new>", 2, 8, r"shape \(2, 8\), expected \(n, 16\)"),
    ],
)
def test_what_does_not_fit_changes_nothing(encoder, word, n, width, message):
    add_words(encoder, {"<moon>": vectors(2)})
    before, tokenizer = weight(encoder), encoder.tokenizer
    with pytest.raises(ValueError, match=message):
        add_words(encoder, {"<fine>": vectors(1), word: torch.zeros(n, width)})
    assert encoder.tokenizer is tokenizer
    assert_close(weight(encoder), before, **EXACT)


def test_a_saved_tokenizer_still_expands_words(encoder, tmp_path):
    add_words(encoder, {"<moon>": vectors(3)})
    encoder.tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).encode(PROMPTS[0]) == encoder.tokenizer.encode(PROMPTS[0])


def test_a_copied_encoder_learns_by_itself(encoder):
    other = copy.deepcopy(encoder)
    add_words(other, {"<moon>": vectors(3)})
    assert learned_words(encoder) == {}
    assert encoder.tokenizer.token_id("<moon>") is None
