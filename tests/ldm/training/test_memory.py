"""Which keys of the run file an error for want of memory names. The error itself: tests/pipelines/cli/test_train.py."""

import pytest
import torch

from configs.training import LoopConfig
from ldm.training.memory import advice


@pytest.mark.parametrize(
    ("stage", "loop", "processes", "words"),
    [
        ("denoiser", LoopConfig(batch=12), 1, "denoiser.loop.accumulation = 2 in the run file"),
        ("denoiser", LoopConfig(batch=12, accumulation=2), 2, "denoiser.loop.accumulation = 6 "),  # 4 leave half ones
        ("text", LoopConfig(batch=12), 1, "(a step in smaller parts, with fewer pictures to tell a caption from)"),
        ("denoiser", LoopConfig(batch=12, accumulation=6), 2, "networks of the stage denoiser are too large"),
    ],
)
def test_names_the_next_accumulation_that_divides_the_batch(
    stage: str, loop: LoopConfig, processes: int, words: str
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(torch.OutOfMemoryError) as caught, advice(stage, loop, processes):
        raise error
    assert words in caught.value.__notes__[0]


@pytest.mark.parametrize("text", ["[enforce fail] not enough memory: you tried to allocate 8 bytes", "shapes differ"])
def test_other_errors_are_left_as_they_are(text: str) -> None:
    with pytest.raises(RuntimeError) as caught, advice("text", LoopConfig()):
        raise RuntimeError(text)
    assert hasattr(caught.value, "__notes__") == ("memory" in text)
