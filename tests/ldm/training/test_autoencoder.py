"""The autoencoder's terms: each moves what it should; normalised latents decode as before; the adversary's algebra."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import mse_loss

from ldm.data.emoji_scenes import EmojiScenes, World, render
from ldm.training.adversary import PatchDiscriminator, adaptive_weight, hinge
from ldm.training.autoencoder import AutoencoderTraining, Discrimination, Reconstruction, normalise
from ldm.training.crops import cut, seen, window
from ldm.training.perceptual import Classifier, ClassifierTraining, PerceptualDistance, classes_of
from ldm.training.stage import Batch
from ldm.training.stages import latent_statistics
from ldm.training.trainer import Trainer
from vae import AutoencoderKL
from vae.pixels import from_pil


@pytest.fixture
def scenes(run):
    return EmojiScenes("train", 0, world=World(run.world))


@pytest.fixture
def stage(run, scenes) -> AutoencoderTraining:
    torch.manual_seed(0)
    return AutoencoderTraining(run, scenes, PerceptualDistance(Classifier(run.classifier.channels, 3)))


def batch_of(stage: AutoencoderTraining, first: int = 0) -> Batch:
    examples = [stage.example(i) for i in range(first, first + 4)]
    return {key: torch.stack([one[key] for one in examples]) for key in examples[0]}


def only(stage: AutoencoderTraining, **weights: float) -> Reconstruction:
    """The stage's module with all but the given weights at zero."""
    module = stage.players[0].module
    assert isinstance(module, Reconstruction)
    off = {"perceptual": 0.0, "adversarial": 0.0, "kl": 0.0, "adversarial_from": 0.0}
    module.config = replace(module.config, **{**off, **weights})
    return module


def descend(module: Reconstruction, batch: Batch, steps: int) -> list[dict[str, torch.Tensor]]:
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    seen = []
    for step in range(steps):
        loss, metrics = module(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(metrics)
    return seen


def test_perceptual_term_lowers_the_distance_of_features_more_than_l1_alone(run, scenes, stage):
    batch = batch_of(stage)
    with_it = descend(only(stage, perceptual=30.0), batch, 25)
    torch.manual_seed(0)
    other = AutoencoderTraining(run, scenes, PerceptualDistance(Classifier(run.classifier.channels, 3)))
    without = descend(only(other), batch, 25)
    torch.testing.assert_close(with_it[0]["perceptual"], without[0]["perceptual"])
    assert with_it[-1]["perceptual"] < 0.85 * without[-1]["perceptual"]


def test_adversarial_term_makes_pictures_that_the_discriminator_takes_for_real(stage):
    """With a fixed discriminator the patches' logits rise where the term is on, and hardly where it is off."""
    batch, module = batch_of(stage), only(stage, adversarial=1.0)
    before = [value.clone() for value in module.discriminator.parameters()]
    rise = descend(module, batch, 25)
    assert rise[-1]["fooled"] < rise[0]["fooled"] - 0.5  # "fooled" is minus the mean logit
    for value, old in zip(module.discriminator.parameters(), before, strict=True):
        assert torch.equal(value, old)
        assert value.grad is None


def test_adversarial_term_is_off_before_its_start(stage):
    module, batch = only(stage, adversarial=1.0, adversarial_from=0.5), batch_of(stage)
    early, late = module(batch, 1)[1], module(batch, 2)[1]
    assert "fooled" not in early
    assert "fooled" in late


def test_both_players_resume_bit_for_bit(tmp_path, run, scenes):
    """The discriminator enters in step 2 of 4, with a rate that rises from there."""

    def fresh() -> AutoencoderTraining:
        torch.manual_seed(0)
        changed = replace(run, autoencoder=replace(run.autoencoder, adversarial_from=0.5))
        return AutoencoderTraining(changed, scenes, PerceptualDistance(Classifier(run.classifier.channels, 3)))

    whole, cut_off = fresh(), fresh()
    rates = []
    trainer = Trainer(whole, tmp_path / "whole", cpu=True)
    for _ in trainer:
        rates.append(trainer.players[1].optimizers[0].param_groups[0]["lr"])
    assert rates[2] == pytest.approx(run.autoencoder.discriminator_rate / 2)  # the first of two steps of warm-up
    for report in Trainer(cut_off, tmp_path / "cut", cpu=True):
        if report.step == 3:
            break
    resumed = fresh()
    for _ in Trainer(resumed, tmp_path / "cut", cpu=True):
        pass
    for mine, theirs in zip(whole.players, resumed.players, strict=True):
        for name, value in mine.module.state_dict().items():
            assert torch.equal(value, theirs.module.state_dict()[name]), name


def test_discriminator_learns_to_tell_real_from_reconstructed(stage):
    batch, module = batch_of(stage), only(stage, adversarial=1.0)
    batch["output"] = module(batch, 0)[1]["output"].detach()
    critic = stage.players[1].module
    assert isinstance(critic, Discrimination)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    for _ in range(40):
        loss, metrics = critic(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    assert metrics["real"] > metrics["fake"] + 1


def test_kl_term_draws_the_posterior_to_the_normal(stage):
    kl = [metrics["kl"] for metrics in descend(only(stage, kl=1.0), batch_of(stage), 30)]
    assert kl[-1] < 0.7 * kl[0]


def test_hinge_is_the_closed_form():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    torch.testing.assert_close(hinge(real, fake).item(), 0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))


def test_adaptive_weight_is_the_ratio_of_gradients():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    found = adaptive_weight((w * w).sum(), 5 * w.sum(), w)  # gradients (6, 8) and (5, 5)
    torch.testing.assert_close(found.item(), 10 / (math.sqrt(50) + 1e-4))
    assert not found.requires_grad


def test_discriminator_judges_patches():
    """A change in one corner leaves the opposite corner's logit alone, up to what GroupNorm spreads."""
    torch.manual_seed(0)
    critic = PatchDiscriminator(8).eval()
    image = torch.randn(1, 3, 64, 64)
    changed = image.clone()
    changed[..., :8, :8] += 3
    moved = (critic(changed) - critic(image)).abs()[0, 0]
    assert moved.shape == (7, 7)
    assert moved[0, 0] > 5 * moved[-1, -1]


def test_normalised_latents_have_unit_variance_and_decode_to_the_same_picture(run, scenes):
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(run.autoencoder.model)
    images = from_pil([render(scenes[i], run.size) for i in range(8)])
    with torch.no_grad():
        raw = autoencoder.posterior(images)
        picture = autoencoder.decode(raw.mean)
        mean, std = latent_statistics(autoencoder, scenes, run.size, 8)
        normalise(autoencoder, mean, std)
        new = autoencoder.encode(images)
    torch.testing.assert_close(new.mean, (raw.mean - mean[:, None, None]) / std[:, None, None], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new.std, raw.std / std[:, None, None], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(new.mean), picture, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new.mean.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(new.mean.std((0, 2, 3)), torch.ones(4), rtol=1e-2, atol=0)


def test_normalising_needs_the_two_convolutions(run):
    config = replace(run.autoencoder.model, quant_conv=False)
    with pytest.raises(ValueError, match="needs an autoencoder with quant_conv"):
        normalise(AutoencoderKL(config), torch.zeros(4), torch.ones(4))


def test_classifier_learns_what_a_crop_shows(run, scenes):
    """On eight crops again and again: all labels right, so labels and pictures belong together."""
    torch.manual_seed(0)
    stage = ClassifierTraining(run, scenes)
    examples = [stage.example(i) for i in range(8)]
    batch = {key: torch.stack([one[key] for one in examples]) for key in examples[0]}
    assert 0 < batch["labels"].sum(1).max() <= 5
    module = stage.players[0].module
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for step in range(150):
        loss, metrics = module(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["exact"] == 1


def test_labels_name_what_is_seen(run, scenes):
    stage, names = ClassifierTraining(run, scenes), classes_of(scenes.world)
    whole = replace(run, autoencoder=replace(run.autoencoder, crop=0))
    for index in range(20):
        labels = ClassifierTraining(whole, scenes).example(index)["labels"]
        told = {name for name, label in zip(names, labels.tolist(), strict=True) if label}
        assert {one.noun for one in scenes[index].objects} <= told
    assert stage.example(3)["image"].shape == (3, 16, 16)


def test_crops_lie_over_things(scenes):
    """Most crops hold the middle of something, and none leaves the picture."""
    from ldm.data.emoji_scenes.keyed import Keyed

    hits = 0
    for index in range(200):
        scene, draw = scenes[index], Keyed("test", index)
        left, top = window(scene, 128, 64, draw)
        assert 0 <= left <= 64
        assert 0 <= top <= 64
        hits += any(seen(one.box, 128, 64, (left, top)) for one in scene.objects)
    assert hits > 150
    image, (left, top) = cut(scenes[0], 128, 64, Keyed("test", 0))
    assert mse_loss(image, from_pil([render(scenes[0], 128)])[0, :, top : top + 64, left : left + 64]) == 0


def test_example_depends_on_its_number_alone(run, scenes, stage):
    again = AutoencoderTraining(run, scenes, PerceptualDistance(Classifier(run.classifier.channels, 3)))
    for index in (0, 5, 15):
        for key, value in stage.example(index).items():
            assert torch.equal(value, again.example(index)[key])
    assert stage.example(0)["image"].shape == (3, 16, 16)
    assert stage.example(12)["image"].shape == (3, 32, 32)  # from the share `whole_from` on
