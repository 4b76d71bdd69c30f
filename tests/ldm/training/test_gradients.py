"""Gradients of a training step against diffusers' own, put together from its public parts as its scripts do."""

import diffusers
import pytest
import torch
import torch.nn.functional as F

from tests.ldm.checkpoint.conftest import sd1, sdxl
from tests.ldm.training.tuning import begun, config_of, pictures

STEPS = [3, 250, 640, 990]


def their_loss(pipe, batch, captions, sizes, prediction):
    """Of a batch of latents and noise, by U-Net, text encoders and scheduler of diffusers."""
    latents, noise, t = batch["mean"] + batch["std"] * batch["posterior"], batch["noise"], torch.tensor(STEPS)
    scheduler = diffusers.DDPMScheduler.from_config({**pipe.scheduler.config, "prediction_type": prediction})
    added = {}
    if hasattr(pipe, "text_encoder_2"):
        tokens, _, pooled, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    else:
        tokens, _ = pipe.encode_prompt(captions, "cpu", 1, False)
    output = pipe.unet(scheduler.add_noise(latents, noise, t), t, tokens, **added).sample
    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, t)
    return F.mse_loss(output, target)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_gradients_are_those_of_diffusers_step(tmp_path, family, prediction):
    pipe = {"sd1": sd1, "sdxl": sdxl}[family](tmp_path / "parts")
    pipe.save_pretrained(tmp_path / "model")
    pictures(tmp_path / "pictures")
    tables = {"objective": {"prediction": prediction}, "trains": {"text": True}}
    data = {"caption_dropout": 0.0, "buckets": False, "flip": False}
    config = config_of(tmp_path / "model", tmp_path / "pictures", "full", data=data, loop={"batch": 4}, **tables)
    run = begun(config, tmp_path / "run")
    rows = [run.stage.example(index) for index in range(4)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    schedule = run.stage.module.objective.schedule
    batch["sigma"] = torch.tensor([schedule.training_sigmas[t] for t in STEPS])
    outlines = [run.pictures.outline(index) for index in range(4)]
    sizes = torch.tensor([outline.sizes for outline in outlines], dtype=torch.float32)
    # ours
    loss, _ = run.stage.module(batch, 0)
    loss.backward()
    # theirs
    for part in (pipe.unet, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if part is not None:
            part.requires_grad_(True).train()
    wanted = their_loss(pipe, batch, [outline.caption for outline in outlines], sizes, prediction)
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    theirs = dict(pipe.unet.named_parameters())
    for name, parameter in run.stage.module.unet.named_parameters():
        _assert_close(name, parameter.grad, theirs[name].grad)
    texts = dict(pipe.text_encoder.named_parameters())
    first = getattr(run.stage.module.text_encoder, "first", run.stage.module.text_encoder)
    compared = 0
    for name, parameter in first.model.named_parameters():
        own = theirs_of(texts, name)
        if parameter.requires_grad:
            _assert_close(name, parameter.grad, own.grad)
            compared += 1
        else:
            assert own.grad is None or not own.grad.any(), name  # what is left out has no gradient there either
    assert compared > 5


def theirs_of(parameters, name):
    """By the name of transformers 4, or that of 5, which leaves out `text_model.`"""
    return parameters[name] if name in parameters else parameters[name.removeprefix("text_model.")]


def _assert_close(name, ours, theirs):
    """Within 1e-5 of the largest gradient of a tensor."""
    assert ours is not None, name
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(float(theirs.abs().max()), 1e-3), msg=name)
