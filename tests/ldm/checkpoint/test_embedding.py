"""Textual inversions in every layout, as the programs that write them do, and files that are none."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from configs.architecture import TextEncoderConfig
from ldm.checkpoint.embedding import load_embedding, unload_embedding
from text_encoder import PENULTIMATE, CLIPTextEncoder, CLIPTextModel, PairedTextEncoder, Tokenizer
from text_encoder.inversion import learned_words

EXACT = {"rtol": 0, "atol": 0}
TEXT = TextEncoderConfig(width=16, layers=1, heads=2, mlp_width=16)
MOON, LARGE = torch.randn(3, 16), torch.randn(3, 24)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.clip()


def encoder(tokenizer, width=16, **policy):
    return CLIPTextEncoder(tokenizer, CLIPTextModel(TextEncoderConfig(width, 1, 2, 16)), **policy)


@pytest.fixture
def single(tokenizer):
    return encoder(tokenizer)


@pytest.fixture
def pair(tokenizer):
    return PairedTextEncoder(encoder(tokenizer, policy=PENULTIMATE), encoder(tokenizer, 24, policy=PENULTIMATE))


def rows(encoder, prompt):
    """The vectors that a prompt is read as."""
    ids = torch.tensor(encoder.tokenizer.encode(prompt))
    return encoder.model.text_model.embeddings.token_embedding.weight.detach()[ids]


def a1111(vectors, name="moonlight"):
    """As the original program saves it: counts and tokens beside the vectors, which are a parameter."""
    return {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": {"*": nn.Parameter(vectors)},
        "name": name,
        "step": 500,
        "sd_checkpoint": "a1b2c3",
        "sd_checkpoint_name": "model",
    }


LAYOUTS = {  # what is written, under which file name -> the word it gives itself
    "diffusers": ({"<moon>": MOON}, "learned_embeds.bin", "<moon>"),
    "diffusers-safetensors": ({"<moon>": MOON}, "learned_embeds.safetensors", "<moon>"),
    "a1111": (a1111(MOON, "its first name"), "moonlight.pt", "moonlight"),
    "tensor": (MOON, "moonlight.pt", "moonlight"),
    "emb_params": ({"emb_params": MOON}, "moonlight.safetensors", "moonlight"),
    "one-vector": ({"<moon>": MOON[0]}, "x.bin", "<moon>"),
    "half": ({"emb_params": MOON.half()}, "moonlight.safetensors", "moonlight"),
}


def write(content, path):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, single, tmp_path):
    content, name, word = LAYOUTS[layout]
    path = write(content, tmp_path / name)
    expected = MOON[:1] if layout == "one-vector" else MOON.half().float() if layout == "half" else MOON
    assert load_embedding(single, path) == [word]
    assert_close(rows(single, word), expected, **EXACT)
    unload_embedding(single, word)
    assert load_embedding(single, path, "<own word>") == ["<own word>"]
    assert_close(rows(single, "<own word>"), expected, **EXACT)


def test_a_folder_and_what_a_file_holds(single, tmp_path):
    write({"<moon>": MOON}, tmp_path / "learned_embeds.bin")
    load_embedding(single, tmp_path)
    assert_close(rows(single, "<moon>"), MOON, **EXACT)
    load_embedding(single, MOON, "<tensor>")
    load_embedding(single, a1111(MOON, "bright moon"))
    for word in ("<tensor>", "bright moon"):
        assert_close(rows(single, word), MOON, **EXACT)
    with pytest.raises(FileNotFoundError, match="neither learned_embeds"):
        load_embedding(single, tmp_path.parent)
    with pytest.raises(ValueError, match="the tensor names no word: pass token="):
        load_embedding(single, MOON)


def test_several_tokens_for_several_vectors(single):
    assert load_embedding(single, MOON, ["<s0>", "<s1>", "<s2>"]) == ["<s0>", "<s1>", "<s2>"]
    assert_close(rows(single, "<s2><s0>"), MOON[[2, 0]], **EXACT)
    with pytest.raises(ValueError, match="holds 3 vectors: pass as many different tokens"):
        load_embedding(single, MOON, ["<t0>", "<t1>"])


def test_sdxl_takes_both_halves_in_one_call(pair, tokenizer, tmp_path):
    path = write({"clip_l": MOON, "clip_g": LARGE}, tmp_path / "moonlight.safetensors")
    before = [
        one.model.text_model.embeddings.token_embedding.weight.detach().clone() for one in (pair.first, pair.second)
    ]
    assert load_embedding(pair, path) == ["moonlight"]
    assert_close(rows(pair.first, "moonlight"), MOON, **EXACT)
    assert_close(rows(pair.second, "moonlight"), LARGE, **EXACT)
    unload_embedding(pair)
    for one, weight in zip((pair.first, pair.second), before, strict=True):
        assert_close(one.model.text_model.embeddings.token_embedding.weight, weight, **EXACT)
        assert one.tokenizer is tokenizer
    refiner = encoder(tokenizer, 24, policy=PENULTIMATE)
    load_embedding(refiner, path)
    assert_close(rows(refiner, "moonlight"), LARGE, **EXACT)


def test_another_family_is_named_and_changes_nothing(tokenizer, tmp_path):
    def meta(width, **policy):
        with torch.device("meta"):
            return encoder(tokenizer, width, **policy)

    sd1, sd2 = meta(768), meta(1024)
    sdxl = PairedTextEncoder(meta(768, policy=PENULTIMATE), meta(1280, policy=PENULTIMATE))
    one = write({"<moon>": torch.zeros(2, 768)}, tmp_path / "one.safetensors")
    two = write({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, tmp_path / "two.safetensors")
    for model, path, message in (
        (sd2, one, r"width 768 \(Stable Diffusion 1\).*has the width 1024 \(Stable Diffusion 2\)"),
        (sdxl, one, r"width 768 \(Stable Diffusion 1\).*has the width 2048 \(SDXL\)"),
        (sd1, two, r"width 2048 \(SDXL\).*has the width 768 \(Stable Diffusion 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_embedding(model, path)
    assert learned_words(sdxl.first) == learned_words(sdxl.second) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<moon>": torch.full((1, 16), torch.nan)}, "NaN or infinity"),
        ({"a.lora_down.weight": torch.zeros(4, 8)}, "is a LoRA, no textual inversion"),
        ({"a.weight": torch.zeros(4, 8, 1, 1)}, r"is no textual inversion.*a\.weight"),
        ({"a.weight": torch.zeros(2000, 8)}, "is no textual inversion"),
        ({"step": torch.tensor(3)}, "is no textual inversion"),
        ({"clip_l": torch.zeros(2, 16), "clip_g": torch.zeros(3, 16)}, "2 vectors as clip_l but 3 as clip_g"),
        ({"cat": torch.zeros(1, 16)}, "'cat' is in the vocabulary already: pass token= .*FILE:TOKEN"),
    ],
)
def test_bad_files_change_nothing(content, message, single, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_embedding(single, write(content, tmp_path / "x.safetensors"))
    assert learned_words(single) == {}


def test_words_are_unloaded_by_name(single):
    load_embedding(single, {"<moon>": MOON})
    load_embedding(single, {"<sun>": MOON})
    with pytest.raises(ValueError, match="no embedding '<star>' is loaded; loaded are <moon>, <sun>"):
        unload_embedding(single, "<star>")
    unload_embedding(single, ["<moon>"])
    assert list(learned_words(single)) == ["<sun>"]
    with pytest.raises(ValueError, match="'<sun>' is in the vocabulary"):
        load_embedding(single, {"<sun>": MOON})
    unload_embedding(single)
    unload_embedding(single)
    with pytest.raises(ValueError, match="none is loaded"):
        unload_embedding(single, "<sun>")
