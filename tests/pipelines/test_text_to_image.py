"""What our pipeline promises beyond parity: seeds, streams, interruption, callbacks, records, words for bad input."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import Interrupted, TextToImagePipeline
from pipelines.result import read_record

PROMPT = "a cat holding a banana"
SMALL: dict[str, Any] = {"num_inference_steps": 4, "height": 64, "width": 64}
ABOUT_THE_MODEL = ("model", "model_hash", "dtype", "device", "versions")


def draw(pipe: TextToImagePipeline, prompt: Any = PROMPT, **options: Any) -> Tensor:
    images: Tensor = pipe(prompt, **{"output_type": "pt", **SMALL, **options}).images
    return images


# seeds


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m_sde", "dpmpp_sde"])
def test_a_picture_depends_on_its_seed_alone(pipe: TextToImagePipeline, sampler: str) -> None:
    batch = draw(pipe, seed=7, num_images_per_prompt=4, sampler=sampler)
    for i in range(4):
        torch.testing.assert_close(draw(pipe, seed=7 + i, sampler=sampler)[0], batch[i], rtol=0, atol=1e-5)


def test_a_long_prompt_beside_it_changes_nothing(pipe: TextToImagePipeline) -> None:
    alone = draw(pipe, seed=1)
    beside = draw(pipe, [PROMPT, "a banana " * 60], seed=[1, 2])
    torch.testing.assert_close(beside[0], alone[0], rtol=0, atol=1e-5)


def test_seeds(pipe: TextToImagePipeline) -> None:
    assert torch.equal(draw(pipe, seed=0), draw(pipe, seed=[0]))
    assert not torch.allclose(draw(pipe, seed=0), draw(pipe, seed=1), atol=1e-2)
    assert [r["seed"] for r in pipe(["a", "b"], seed=2**32 - 1, **SMALL).records] == [2**32 - 1, 0]


def test_a_seed_nobody_gave_is_recorded_and_follows_the_global_generator(pipe: TextToImagePipeline) -> None:
    torch.manual_seed(3)
    first = pipe(PROMPT, output_type="pt", **SMALL)
    torch.manual_seed(3)
    assert torch.equal(draw(pipe), first.images)
    assert torch.equal(draw(pipe, seed=first.records[0]["seed"]), first.images)


# prompts


def test_gamma_is_guidance_minus_one(pipe: TextToImagePipeline) -> None:
    assert torch.equal(draw(pipe, seed=1, gamma=6.5), draw(pipe, seed=1, guidance_scale=7.5))


def test_weights_act_only_in_their_syntax(pipe: TextToImagePipeline) -> None:
    plain, weighted = draw(pipe, "a cat", seed=1), draw(pipe, "a (cat:1.5)", seed=1, prompt_syntax="a1111")
    assert not torch.allclose(plain, weighted, atol=1e-4)
    assert torch.equal(draw(pipe, "a (cat:1.0)", seed=1, prompt_syntax="a1111"), plain)
    assert not torch.allclose(draw(pipe, "a (cat:1.5)", seed=1), weighted, atol=1e-4)


def test_long_prompts_are_read_to_the_end(pipe: TextToImagePipeline, caplog: pytest.LogCaptureFixture) -> None:
    start = "a banana " * 50
    first, second = draw(pipe, start + "cat", seed=1), draw(pipe, start + "dog", seed=1)
    assert not torch.allclose(first, second, atol=1e-4)
    assert "read in 2 chunks" in caplog.text


# steps


def test_a_stream_gives_steps_previews_and_the_same_picture(pipe: TextToImagePipeline) -> None:
    stream = pipe.stream(PROMPT, seed=5, output_type="pt", **SMALL)
    steps = list(stream)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert len(stream) == steps[0].steps == 4
    assert steps[0].preview()[0].size == (8, 8)
    assert torch.equal(stream.result.images, draw(pipe, seed=5))
    assert torch.equal(stream.result.images, draw(pipe, seed=5))


def test_leaving_the_loop_stops_at_once(pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_passes(pipe, monkeypatch)
    monkeypatch.setattr(pipe.model.autoencoder, "decode", lambda z: pytest.fail("decoded"))
    stream = pipe.stream(PROMPT, seed=5, **SMALL)
    for step in stream:
        if step.index == 1:
            break
    assert len(calls) == 2
    with pytest.raises(Interrupted):
        _ = stream.result


def test_interrupt(pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_passes(pipe, monkeypatch)
    for step in (stream := pipe.stream(PROMPT, **SMALL)):
        if step.index == 0:
            pipe.interrupt()
            with pytest.raises(Interrupted):
                _ = stream.result
            break
    assert len(calls) == 1
    assert draw(pipe, seed=1).isfinite().all()  # the next call is not affected


def test_interrupt_while_the_text_is_read(pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = pipe.text_encoder.forward

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        pipe.interrupt()
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.text_encoder, "forward", interrupted)
    with pytest.raises(Interrupted):
        draw(pipe)


def test_streams_side_by_side_do_not_disturb_each_other(pipe: TextToImagePipeline) -> None:
    def look(pipe: Any, index: int, time: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    options: dict[str, Any] = {"seed": 1, "output_type": "pt", **SMALL}
    first = pipe.stream(PROMPT, guidance_scale=9.0, callback_on_step_end=look, **options)
    second = pipe.stream(PROMPT, guidance_scale=2.0, **options)
    for _ in zip(first, second, strict=False):
        pass
    assert torch.equal(first.result.images, draw(pipe, seed=1, guidance_scale=9.0))


def test_wrapping_a_model_leaves_its_precision(pipe: TextToImagePipeline) -> None:
    model = TextToImagePipeline.from_pretrained(Path(pipe.model.source), device="cpu", dtype="bf16").model
    assert TextToImagePipeline(model, device="cpu").dtype == torch.bfloat16


def count_passes(pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    forward = pipe.model.unet.forward

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(args[2]))  # rows of text
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.model.unet, "forward", counted)
    return calls


def test_guidance_costs_a_second_half_of_the_batch_and_only_where_it_acts(
    pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_passes(pipe, monkeypatch)
    draw(pipe)
    draw(pipe, guidance_scale=1.0)
    draw(pipe, guidance_interval=(0.5, 3.0), sampler="euler")
    assert calls[:8] == [2] * 4 + [1] * 4
    assert set(calls[8:]) == {1, 2}


# callbacks


@pytest.mark.parametrize("name", ["prompt_embeds", "negative_prompt_embeds"])
def test_a_callback_may_edit_embeddings_in_place(pipe: TextToImagePipeline, name: str) -> None:
    def edit(pipe: Any, index: int, time: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name].mul_(0.5)
        return {}

    edited = draw(pipe, callback_on_step_end=edit, callback_on_step_end_tensor_inputs=[name])
    assert not torch.allclose(edited, draw(pipe), atol=1e-4)


def test_a_callback_that_changes_nothing_has_the_text_read_once(
    pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    layer = pipe.model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    draw(pipe, callback_on_step_end=lambda *_: {})
    hook.remove()
    assert len(calls) == 1


def test_a_callback_sees_and_replaces_tensors(pipe: TextToImagePipeline) -> None:
    seen: list[tuple[int, float, tuple[int, ...]]] = []

    def look(pipe: Any, index: int, time: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((index, time, tuple(tensors["prompt_embeds"].shape)))
        return {"latents": tensors["latents"] * 0 + index}

    names = ["latents", "prompt_embeds"]
    settings = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names, "output_type": "latent"}
    images = pipe(PROMPT, seed=1, **SMALL, **settings).images
    assert seen == [(i, t, (2, 77, 32)) for i, t in enumerate([751.0, 501.0, 251.0, 1.0])]
    torch.testing.assert_close(images, torch.full_like(images, 3.0))


def test_diffusers_interrupt_skips_the_rest_and_decodes(
    pipe: TextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_passes(pipe, monkeypatch)

    def stop(pipe: Any, index: int, time: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._interrupt = index == 1
        return tensors

    assert draw(pipe, callback_on_step_end=stop).shape == (1, 3, 64, 64)
    assert len(calls) == 2


# results


def test_records_travel_in_the_png(pipe: TextToImagePipeline, tmp_path: Path) -> None:
    result = pipe([PROMPT, "ein Bär 🐻"], seed=9, sampler="DPM++ 2M Karras", **SMALL)
    first, second = result.save(tmp_path / "new" / "{seed}.png")
    assert (first.name, second.name) == ("9.png", "10.png")
    record = read_record(second)
    assert record == json.loads(json.dumps(result.records[1]))
    assert record["prompt"] == "ein Bär 🐻"
    assert (record["seed"], record["steps"], record["guidance_scale"]) == (10, 4, 7.5)
    assert len(record["model_hash"]) == 10
    assert result.save(tmp_path / "new" / "{seed}.png")[0].name != "9.png"


def test_numbers_of_numpy_and_torch_are_numbers(pipe: TextToImagePipeline) -> None:
    options = {"guidance_scale": np.float32(3.0), "height": np.int64(64), "seed": np.int64(1)}
    result = pipe(PROMPT, **{**SMALL, **options, "timesteps": torch.tensor([900, 400]), "output_type": "pt"})
    assert json.loads(json.dumps(result.records[0]))["timesteps"] == [900.0, 400.0]
    expected = pipe(PROMPT, guidance_scale=3.0, seed=1, timesteps=[900, 400], output_type="pt", height=64, width=64)
    assert torch.equal(result.images, expected.images)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "DPM++ 2M Karras"},
        {"sampler": "DPM++ 2M SDE Heun"},
        {"sampler": "ddim", "eta": 0.5},
        {"sampler": "unipc", "grid": "exponential", "guidance_interval": (0.5, 5.0)},
        {"sampler": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}},
        {"timesteps": [900, 500, 100], "guidance_rescale": 0.5, "clip_skip": 1},
        {"prompt": "a (cat:1.4)", "prompt_syntax": "a1111", "gamma": 3.0, "denoising_end": 0.7},
    ],
)
def test_a_record_is_enough_to_draw_again(pipe: TextToImagePipeline, options: dict[str, Any]) -> None:
    result = pipe(**{"prompt": PROMPT, "output_type": "pt", **SMALL, **options})
    record = json.loads(json.dumps(result.records[0]))
    again = {name: value for name, value in record.items() if name not in ABOUT_THE_MODEL and value is not None}
    again["num_inference_steps"] = again.pop("steps")
    torch.testing.assert_close(pipe(**again, output_type="pt").images, result.images, rtol=0, atol=0)


def test_tuple_and_latent_output(pipe: TextToImagePipeline) -> None:
    images, flags = pipe(PROMPT, return_dict=False, **SMALL)
    assert len(images) == 1
    assert flags is None
    assert pipe(PROMPT, output_type="latent", **SMALL).images.shape == (1, 4, 8, 8)


def test_signature_is_the_requests(pipe: TextToImagePipeline) -> None:
    parameters = list(inspect.signature(pipe.__call__).parameters)
    assert parameters[:4] == ["prompt", "height", "width", "num_inference_steps"]
    assert list(inspect.signature(pipe.stream).parameters) == parameters


def test_vae_tiling_and_slicing(pipe: TextToImagePipeline) -> None:
    whole = draw(pipe, seed=1, num_images_per_prompt=2, height=96)
    pipe.enable_vae_slicing()
    torch.testing.assert_close(draw(pipe, seed=1, num_images_per_prompt=2, height=96), whole, rtol=0, atol=1e-5)
    pipe.enable_vae_tiling()
    tiled = draw(pipe, seed=1, num_images_per_prompt=2, height=96)
    pipe.disable_vae_tiling()
    pipe.disable_vae_slicing()
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)


def test_half_precision_that_overflows_is_decoded_again(pairs: Callable[[str], Any]) -> None:
    pipe = TextToImagePipeline.from_pretrained(pairs("sd1").folder, device="cpu", dtype="bf16")
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.config = replace(pipe.vae.config, force_upcast=False)  # as of those that are said to bear it
    pipe.model.autoencoder.half()
    pipe.model.autoencoder.decoder.conv_in.weight.data.mul_(1e7)  # infinite in float16 after the first layer
    pipe.model.autoencoder.decoder.conv_in.weight.data.clamp_(-6e4, 6e4)
    with pytest.warns(UserWarning, match="float32"):
        assert draw(pipe).isfinite().all()
    assert next(pipe.model.autoencoder.parameters()).dtype == torch.float16
