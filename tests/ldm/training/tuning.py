"""A run of fine-tuning small enough for tests: a real model, real pictures, a few steps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from configs.files import from_dict
from configs.finetuning import FineTuneConfig
from ldm.model import LatentDiffusion
from ldm.training import checkpoint as checkpoints
from ldm.training.drawing import Wanted
from ldm.training.ready import Ready, ready
from ldm.training.trainer import Trainer
from ldm.training.verify import tensors_of

SIZE = 32
COLOURS = ("red", "green", "blue", "yellow", "white")


def pictures(folder: Path, count: int = 6, hints: Path | None = None) -> Path:
    """Squares of five colours on black, of two shapes, each with its caption; hints: the squares in white."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        colour, size = COLOURS[number % len(COLOURS)], (48, 48) if number % 2 else (64, 32)
        for place, paint in ((folder, colour), (hints, "white")):
            if place is not None:
                place.mkdir(exist_ok=True)
                image = Image.new("RGB", size)
                image.paste(paint, (8 + number % 7, 6, 24 + number % 7, 22))
                image.save(place / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} square, number {number}")
    return folder


def config_of(model: Path, folder: Path, mode: str = "lora", **tables: dict[str, Any]) -> FineTuneConfig:
    """A run of six steps; tables add to or replace parts of the defaults."""
    loop = {
        "steps": 6, "batch": 2, "precision": "no", "ema": 0.9, "checkpoint_every": 2, "log_every": 1, "sample_every": 6,
        "optimizer": {"rate": 1e-3, "warmup": 2},
    }  # fmt: skip
    data = {"path": str(folder), "size": SIZE, "bucket_step": 8, "smallest": 16, "flip": True, "caption_dropout": 0.3}
    values: dict[str, Any] = {
        "name": "tiny", "mode": mode, "model": str(model), "lora": {"rank": 4}, "validation": {"measure_every": 0},
    }  # fmt: skip
    if mode == "inversion":
        values["inversion"] = {"word": "<it>", "start": "square"}
    if mode == "controlnet":
        data["hints"] = str(folder.with_name("hints"))
    values |= {name: table for name, table in tables.items() if name not in ("loop", "data")}
    values |= {"loop": loop | tables.get("loop", {}), "data": data | tables.get("data", {})}
    return from_dict(values, FineTuneConfig)


def no_draw(model: LatentDiffusion, wanted: Wanted) -> list[Image.Image]:
    """For runs that show nothing."""
    raise AssertionError("nothing is to be drawn")


def plain(model: LatentDiffusion, wanted: Wanted) -> list[Image.Image]:
    """Grey pictures, where it does not matter what is drawn."""
    return [Image.new("RGB", (SIZE, SIZE), (i % 256, 100, 100)) for i in range(len(wanted.prompts))]


def train(
    config: FineTuneConfig, folder: Path, until: int | None = None, cache: Path | None = None
) -> dict[str, torch.Tensor]:
    """Trains to the end, or leaves at a step; all tensors of the newest checkpoint."""
    run = ready(config, cache or folder, plain, progress=False, cpu=True)
    for report in Trainer(run.stage, folder, cpu=True, run=run.digest):
        if report.step == until:
            break
    found = checkpoints.newest(folder / "checkpoints")
    assert found is not None
    return tensors_of(found)


def begun(config: FineTuneConfig, folder: Path) -> Ready:
    """A run before its first step."""
    return ready(config, folder, plain, progress=False, cpu=True)


def with_loop(config: FineTuneConfig, **changes: Any) -> FineTuneConfig:
    return replace(config, loop=replace(config.loop, **changes))


def names(paths: Sequence[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], share: float = 0.05) -> None:
    """Up to the order of sums. Adam makes that visible where a gradient is nearly zero, so tensors are compared as a
    whole: they differ by less than a share of the way that six steps at this rate can lead."""
    weights = [name for name in one if name.startswith("tuned/")]
    assert weights
    for name in weights:
        away = (other[name] - one[name]).square().mean().sqrt()
        assert away < share * 6e-3, f"{name}: {away}"
