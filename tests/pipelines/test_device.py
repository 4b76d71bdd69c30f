"""Precisions by name, by default, and by what the device has itself."""

from pathlib import Path

import pytest
import torch

from pipelines import device, processor
from pipelines.device import chosen_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("native", "expected"), [(True, torch.bfloat16), (False, torch.float32), (None, torch.float32)]
)
def test_auto_is_bfloat16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, native: bool | None, expected: torch.dtype
) -> None:
    monkeypatch.setattr(device, "native_bf16", lambda: native)
    assert chosen_dtype("auto", CPU) == expected
    assert chosen_dtype(None, CPU) == torch.float32
    assert chosen_dtype("fp16", CPU) == torch.float16


def test_what_the_processor_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "Path", lambda _: info)
    assert processor.native_bf16() is None
    for line, expected in (
        ("flags\t\t: fpu avx512f avx512_bf16 sse", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2", False),
        ("model name: bf16", None),
    ):
        info.write_text(f"processor: 0\n{line}\n")
        assert processor.native_bf16() is expected
