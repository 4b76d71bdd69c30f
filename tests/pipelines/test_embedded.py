"""The model in the package: small enough, the same in diffusers, and what its card says it is."""

import json
from pathlib import Path

import pytest
import torch

from ldm.checkpoint import embedded, weights_hash
from pipelines import TextToImagePipeline

PROMPT = "a cat holding a banana"


@pytest.fixture(scope="module")
def pipe() -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(dtype=torch.float32)


def test_the_whole_folder_is_at_most_40_mb():
    assert sum(path.stat().st_size for path in Path(embedded()).rglob("*")) <= 40e6


def test_diffusers_draws_the_same_picture_from_the_folder(pipe):
    from diffusers import DiffusionPipeline

    theirs = DiffusionPipeline.from_pretrained(embedded(), safety_checker=None, torch_dtype=torch.float32)
    assert type(theirs).__name__ == "StableDiffusionPipeline"
    theirs.set_progress_bar_config(disable=True)

    def drawn(either):
        request = {"num_inference_steps": 20, "guidance_scale": 7.5, "output_type": "pt"}
        return either(PROMPT, generator=torch.Generator().manual_seed(0), **request).images

    torch.testing.assert_close(drawn(pipe), drawn(theirs), rtol=0, atol=1e-3)


def test_it_draws_what_everyone_tries_first(pipe):
    """At the guidance people are used to, all else by default, by a checker that knows nothing of the model."""
    from ldm.data.emoji_scenes.plan import Link, Plan, Thing
    from ldm.evaluation.checker import Checker
    from ldm.evaluation.worlds import checked_world

    plan = Plan(things=(Thing("cat"), Thing("banana")), links=(Link("holding", 0, 1),))
    checker = Checker(world=checked_world(pipe.model.vocabulary))
    images = pipe([PROMPT] * 4, guidance_scale=7.5, seed=[0, 1, 2, 3], output_type="pt").images
    assert sum(checker.check(2 * image - 1, plan).joint for image in images) >= 3


def test_its_card_names_its_weights_and_the_command_that_made_it():
    card = (Path(embedded()) / "README.md").read_text(encoding="utf-8")
    assert weights_hash(embedded()) in card
    assert "ldm train emoji-" in card
    for word in ("Noto Color Emoji", "OFL", "seed", "ceiling"):
        assert word in card


def test_every_prompt_of_its_vocabulary_is_known(pipe):
    vocabulary = json.loads((Path(embedded()) / "vocabulary.json").read_text(encoding="utf-8"))
    assert pipe.model.vocabulary is not None
    for prompt in (PROMPT, *vocabulary["examples"]):
        assert not pipe.model.vocabulary.unknown(prompt)


def test_its_latents_have_unit_variance(pipe):
    """On scenes it was not trained on: what the noise levels of its training stand on."""
    from configs.training import WorldConfig
    from ldm.data.emoji_scenes import EmojiScenes, World, render
    from vae.pixels import from_pil

    known = pipe.model.vocabulary
    assert known is not None
    nouns = tuple(name for kind in known.nouns.values() for name in kind)
    world = World(WorldConfig(nouns=nouns, recipes=("single", "left of", "above")))
    scenes = EmojiScenes("iid", 1, world=world)
    size = pipe.model.unet.config.sample_size * pipe.model.autoencoder.factor
    with torch.no_grad():
        z = pipe.model.autoencoder.encode(from_pil([render(scenes[i], size) for i in range(64)])).mean
    assert pipe.model.autoencoder.config.scaling_factor == 1
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(z.shape[1]), rtol=0, atol=0.25)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(z.shape[1]), rtol=0, atol=0.25)
