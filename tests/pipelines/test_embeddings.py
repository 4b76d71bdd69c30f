"""Textual inversion through a pipeline: the vectors and the pictures of diffusers, and the command line."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pipelines.cli import main

PROMPT = "a <moon> over a cat, (a <moon>)"


@pytest.fixture
def file(tmp_path):
    save_file({"<moon>": torch.randn(3, 32, generator=torch.Generator().manual_seed(1))}, tmp_path / "moon.safetensors")
    return tmp_path / "moon.safetensors"


def drawn(pipe, prompt):
    return pipe(
        prompt,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        height=64,
        width=64,
    ).images


def reloaded(pair):
    """diffusers' pipeline of a pair, to be changed."""
    theirs = type(pair.theirs).from_pretrained(pair.folder)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def weight(model):
    return model.get_input_embeddings().weight.detach()


def test_vectors_and_pictures_of_diffusers(pairs, pipe, file):
    theirs = reloaded(pairs("sd1"))
    theirs.load_textual_inversion(str(file.parent), weight_name=file.name)
    plain = drawn(pipe, PROMPT)
    before = pipe.text_encoder.model.text_model.embeddings.token_embedding.weight.detach().clone()
    assert pipe.load_textual_inversion(file.parent, weight_name=file.name) == ["<moon>"]
    found = pipe.text_encoder.model.text_model.embeddings.token_embedding.weight
    assert_close(found, weight(theirs.text_encoder), rtol=0, atol=0)
    text = theirs.maybe_convert_prompt(PROMPT, theirs.tokenizer)
    assert pipe.text_encoder.tokenizer.encode(PROMPT) == theirs.tokenizer(text).input_ids[1:-1]
    images = drawn(pipe, PROMPT)
    assert abs(images - drawn(theirs, PROMPT)).max() < 1e-4
    digest = hashlib.sha256(load_file(file)["<moon>"].numpy().tobytes()).hexdigest()
    record = pipe(PROMPT, num_inference_steps=1, height=64, width=64).records[0]
    assert record["embeddings"] == [{"word": "<moon>", "vectors": 3, "sha256": digest}]
    assert abs(images - plain).max() > 1e-3
    pipe.unload_textual_inversion()
    after = pipe.text_encoder.model.text_model.embeddings.token_embedding.weight
    assert_close(after.detach(), before, rtol=0, atol=0)
    assert abs(drawn(pipe, PROMPT) - plain).max() == 0


def test_sdxl_in_one_call_is_diffusers_in_two(pairs, ours):
    theirs, pipe = reloaded(pairs("sdxl")), ours("sdxl")
    g = torch.Generator().manual_seed(2)
    both = {"clip_l": torch.randn(2, 32, generator=g), "clip_g": torch.randn(2, 64, generator=g)}
    for part, suffix in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(theirs, f"text_encoder{suffix}"), getattr(theirs, f"tokenizer{suffix}")
        theirs.load_textual_inversion(both[part], token="<moon>", text_encoder=encoder, tokenizer=tokenizer)
    pipe.load_textual_inversion(both, "<moon>")
    try:
        assert abs(drawn(pipe, PROMPT) - drawn(theirs, PROMPT)).max() < 1e-4
    finally:
        pipe.unload_textual_inversion("<moon>")


def test_a_model_with_words_is_saved_with_them(pipe, file, tmp_path):
    pipe.load_textual_inversion(file)
    try:
        pipe.save_pretrained(tmp_path / "model")
        again = type(pipe).from_pretrained(tmp_path / "model", device="cpu")
        again.set_progress_bar_config(disable=True)
        assert abs(drawn(again, PROMPT) - drawn(pipe, PROMPT)).max() == 0
    finally:
        pipe.unload_textual_inversion()


def test_lists_as_in_diffusers(pipe, file):
    vectors = torch.ones(1, 32)
    assert pipe.load_textual_inversion([file, vectors], token=["<one>", "<two>"]) == ["<one>", "<two>"]
    pipe.unload_textual_inversion(tokens=["<two>", "<one>"])
    with pytest.raises(ValueError, match="1 tokens for 2 embeddings"):
        pipe.load_textual_inversion([file, vectors], token=["<one>"])


def test_command_line(pairs, file, tmp_path, capsys):
    folder = str(pairs("sd1").folder)
    options = ["--model", folder, "--steps", "1", "--seed", "1", "--device", "cpu", "-o", str(tmp_path / "{seed}.png")]
    assert main(["a <night moon>", *options, "--embedding", f"{file}:<night moon>"]) == 0
    missing = str(tmp_path / "missing.pt")
    assert main(["a cat", *options, "--embedding", missing]) == 2
    assert f"{missing}" in capsys.readouterr().err
    assert main(["a cat", *options, "--embedding", f"{file}:cat"]) == 2
    assert "'cat' is in the vocabulary already" in capsys.readouterr().err
