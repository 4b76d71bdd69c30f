"""On a GPU: the pictures of the CPU, half precision that does not overflow, offload, seeds. Run by `pytest -m cuda`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.graph import Graphed
from pipelines import TextToImagePipeline

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
SMALL: dict[str, Any] = {"num_inference_steps": 4, "height": 72, "width": 104, "output_type": "pt"}
FAMILIES = ["sd1", "sd2", "sdxl", "sdxl_refiner"]


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Products of float32 in float32: TF32 off, in matrix products and in convolutions."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def load(folder: Any, **options: Any) -> TextToImagePipeline:
    pipe = TextToImagePipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: TextToImagePipeline, **options: Any) -> Tensor:
    images: Tensor = pipe("a cat holding a banana", **{"seed": 1, **SMALL, **options}).images
    return images.float().cpu()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", [None, "euler_a", "DPM++ 2M SDE Karras"])
def test_cuda_draws_what_the_cpu_draws(pairs: Callable[[str], Any], family: str, sampler: str | None) -> None:
    folder = pairs(family).folder
    expected = draw(load(folder, device="cpu"), sampler=sampler)
    got = draw(load(folder, device=DEVICE, dtype=torch.float32), sampler=sampler)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near_float32(pairs: Callable[[str], Any], family: str) -> None:
    folder = pairs(family).folder
    expected = draw(load(folder, device="cpu"))
    for dtype in (torch.bfloat16, torch.float16):
        got = draw(load(folder, device=DEVICE, dtype=dtype))
        assert (got - expected).abs().max() < {torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]


def test_the_default_is_cuda_in_half_precision(pairs: Callable[[str], Any]) -> None:
    pipe = load(pairs("sd1").folder)
    assert pipe.device.type == DEVICE
    assert pipe.dtype in (torch.bfloat16, torch.float16)


def test_a_vae_that_overflows_in_float16_stays_in_float32(pairs: Callable[[str], Any]) -> None:
    pipe = load(pairs("sdxl").folder, device=DEVICE, dtype=torch.float16)
    assert {p.dtype for p in pipe.model.autoencoder.parameters()} == {torch.float32}
    assert {p.dtype for p in pipe.model.unet.parameters()} == {torch.float16}
    pipe.model.autoencoder.decoder.conv_in.weight.data.mul_(1e5)  # beyond float16, not beyond float32
    assert draw(pipe).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_offload_draws_the_same_and_leaves_the_gpu(pairs: Callable[[str], Any], family: str) -> None:
    pipe = load(pairs(family).folder, device=DEVICE)
    expected = draw(pipe)
    pipe.enable_model_cpu_offload()
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-5)
    devices = {p.device.type for network in pipe.model.networks().values() for p in network.parameters()}
    assert devices == {"cpu"}


def test_offload_never_holds_the_whole_model(pairs: Callable[[str], Any]) -> None:
    pipe = load(pairs("sdxl").folder, device="cpu", dtype=torch.float32)
    pipe.enable_model_cpu_offload()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    steps = pipe.stream("a cat", **SMALL)
    sizes = [sum(p.nbytes for p in network.parameters()) for network in pipe.model.networks().values()]
    assert torch.cuda.memory_allocated() - before < min(sizes)  # the text encoder has left again
    assert steps.result.images.isfinite().all()


def test_a_seed_gives_the_same_noise_on_every_device(pairs: Callable[[str], Any]) -> None:
    noise = []
    for device in ("cpu", DEVICE):
        pipe = load(pairs("sd1").folder, device=device, dtype=torch.float32)
        steps = pipe.stream("a cat", seed=[3, 1], sampler="euler_a", **{**SMALL, "num_images_per_prompt": 2})
        noise.append(next(iter(steps)).latents.cpu())
    torch.testing.assert_close(noise[1], noise[0], rtol=0, atol=1e-3)


def test_a_batch_equals_its_pictures(pairs: Callable[[str], Any]) -> None:
    pipe = load(pairs("sd1").folder, device=DEVICE, dtype=torch.float32)
    batch = draw(pipe, num_images_per_prompt=4, seed=7)
    for i in range(4):
        torch.testing.assert_close(draw(pipe, seed=7 + i)[0], batch[i], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_of_the_step_draws_the_same(pairs: Callable[[str], Any], family: str) -> None:
    pipe = load(pairs(family).folder, device=DEVICE, dtype=torch.float32)
    expected = draw(pipe)
    pipe.speed = replace(pipe.speed, cuda_graph=True)
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        draw(pipe, height=64, seed=2), draw(load_like(pipe), height=64, seed=2), rtol=0, atol=1e-5
    )


def load_like(pipe: TextToImagePipeline) -> TextToImagePipeline:
    """The same model without graphs."""
    return load(pipe.model.source, device=DEVICE, dtype=torch.float32)


def test_a_graph_never_reads_weights_that_have_moved(pairs: Callable[[str], Any]) -> None:
    """As when a LoRA is merged between two steps: new memory for the weights."""
    pipes = [load(pairs("sd1").folder, device=DEVICE, dtype=torch.float32) for _ in range(2)]
    pipes[0].speed = replace(pipes[0].speed, cuda_graph=True)
    found = []
    for pipe in pipes:
        steps = pipe.stream("a cat", seed=1, **{**SMALL, "num_inference_steps": 6})
        for step in steps:
            if step.index == 3:
                weight = pipe.unet.mid_block.resnets[0].conv1.weight
                weight.data = 1.5 * weight.data
        found.append(steps.result.images.cpu())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_graph_is_recorded_and_replayed() -> None:
    calls = []

    def step(x: Tensor, time: Tensor) -> Tensor:
        calls.append(1)
        return x * time

    graphed, x = Graphed(step), torch.ones(3, device=DEVICE)
    for k in range(5):
        result = graphed(x + k, x * 2)
        torch.testing.assert_close(result, 2 * (x + k))
    assert len(calls) == 2  # once to warm up, once to be recorded


def test_what_cannot_be_recorded_is_called() -> None:
    def step(x: Tensor, time: Tensor) -> Tensor:
        return x * time.sum().item()  # waits for the device, which a graph cannot

    graphed, x = Graphed(step), torch.ones(3, device=DEVICE)
    for _ in range(4):
        torch.testing.assert_close(graphed(x, x), 3 * x)


def test_batches_fit_into_the_memory_there_is(pairs: Callable[[str], Any]) -> None:
    pipe = load(pairs("sd1").folder, device=DEVICE, dtype=torch.float32)
    images = draw(pipe, num_images_per_prompt=5)
    assert all(batching.most is not None and batching.most >= 5 for batching in pipe._batchings.values())
    for batching in pipe._batchings.values():
        batching.most = 2
    torch.testing.assert_close(draw(pipe, num_images_per_prompt=5), images, rtol=0, atol=1e-4)


def test_weights_lie_as_the_images_do(pairs: Callable[[str], Any]) -> None:
    """Else each convolution copies its weights at each step."""
    pipe = load(pairs("sd1").folder, device=DEVICE)
    draw(pipe)
    weight = pipe.unet.mid_block.resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
