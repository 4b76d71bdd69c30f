"""What a run of fine-tuning would do, as a page of text and a contact sheet, before it does anything."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import wrap

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch.utils.data import default_collate

from configs.finetuning import FineTuneConfig
from ldm import batching
from ldm.data.pictures.contact_sheet import contact_sheet
from ldm.data.pictures.set import Example, Pictures
from ldm.full_memory import is_full
from ldm.training.drawing import Draw
from ldm.training.finetuning import FineTuning
from ldm.training.forecast import STEPS, WARM, Forecast, memory
from ldm.training.ready import Ready, alone, ready
from ldm.training.suspicions import suspicions
from ldm.training.suspicious_pictures import own_batch
from ldm.training.tracker import KINDS
from ldm.training.trial import Durations, durations, largest, rehearsed

_log = logging.getLogger(__name__)

SHEET = "contact-sheet.png"
WAITING = 0.02  # a larger share of a step is worth a process that opens pictures
SHOWN, NAMED, SHAPES = 48, 10, 10  # pictures on the sheet, names of each problem, shapes of the histogram
_LEFT, _WIDTH, _BAR = 12, 110, 40  # columns


def check(config: FineTuneConfig, output: Path, draw: Draw, *, progress: bool = True) -> str:
    """What would be trained, on what, how long and in how much memory, and what looks like a mistake.

    Reads everything and trains nothing; leaves nothing but `contact-sheet.png` in `output`: pictures as the model
    will see them. Raises ValueError for what cannot be used, as the run itself would, and on several processes.
    """
    alone("--check")
    cpu, output = parse_flag_from_env("ACCELERATE_USE_CPU"), Path(output)
    device = PartialState(cpu=cpu).device
    run = ready(config, output, draw, progress=progress, cpu=cpu, dry=True)
    doubts = suspicions(config, run, device)
    blocks = {
        "run": _run(run, device),
        "trained": _weights(run.prepared.trained.items()),
        "frozen": _weights(_frozen(run)),
        "pictures": _pictures(run),
        "sheet": [f"{_sheet(run.pictures, output)}: pictures as the model will see them"],
        "steps": [_steps(run)],
    }
    with tempfile.TemporaryDirectory() as folder:
        stage = rehearsed(run, Path(folder), device)
        forecast, free = _forecast(stage, largest(run), device), _free(run, device)
        blocks["memory"] = list(_memory(forecast, free))
        blocks["disk"] = list(_disk(run, forecast, shutil.disk_usage(output).free))
        if free is not None and forecast.peak > free:
            blocks["time"] = ["not measured, for a step would not fit into memory"]
        else:
            _log.info("trying %d steps and two pictures, of which nothing is kept", WARM + STEPS)
            blocks["time"] = list(_time(run, stage, draw, output, forecast, device))
    blocks["suspicious"] = [f"{number}. {doubt}" for number, doubt in enumerate(doubts, 1)] or ["nothing"]
    return "\n".join(line for name, lines in blocks.items() for line in _block(name, lines))


def _run(run: Ready, device: torch.device) -> list[str]:
    config = run.config
    how = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[config.loop.precision]
    return [f"{config.name}: mode {config.mode}, of {run.source} ({run.model.family}), in {how} on {device.type}"]


def _weights(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Lines about weights, by network and precision."""
    counts, numbers = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for name, tensor in tensors:
        kind = (name.partition(".")[0], str(tensor.dtype).removeprefix("torch."))
        counts[kind] += 1
        numbers[kind] += tensor.numel()
    if not counts:
        return ["nothing"]
    wide = max(len(f"{number:,}") for number in numbers.values())
    return [f"{name:13}{number:{wide},} in {counts[name, of]} tensors, {of}" for (name, of), number in numbers.items()]


def _frozen(run: Ready) -> Iterator[tuple[str, Tensor]]:
    """What a step uses and leaves as it is."""
    for name, parameter in run.prepared.module.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter


def _pictures(run: Ready) -> list[str]:
    pictures, report = run.pictures, run.report
    lines = list(report.lines(NAMED))
    if pictures.left_out:
        names = list(pictures.left_out)
        lines.append(f"{len(names)} smaller than their shape, left out: {'; '.join(names[:NAMED])}")
    held_out = len(pictures.held_out.items) if pictures.held_out else 0
    lines.insert(1, f"{held_out} of these are held out for measuring" if held_out else "none is held out for measuring")
    shapes = sorted(pictures.shapes().items(), key=lambda pair: -pair[1])
    most = shapes[0][1]
    for (w, h), count in shapes[:SHAPES]:
        lines.append(f"{w:5} x {h:<5}{'#' * max(1, round(_BAR * count / most))} {count}")
    if len(shapes) > SHAPES:
        lines.append(f"and {len(shapes) - SHAPES} other shapes of {sum(n for _, n in shapes[SHAPES:])} pictures")
    return lines


def _sheet(pictures: Pictures, output: Path) -> Path:
    """Draws the contact sheet of the first pictures of a run; returns its path."""
    output.mkdir(parents=True, exist_ok=True)
    draft = output / f".{SHEET}.part"
    contact_sheet(list(_some(pictures))).save(draft, format="PNG")
    return draft.replace(output / SHEET)


def _some(pictures: Pictures) -> Iterator[Example]:
    """Examples in the order they are met, each of another picture."""
    met: set[int] = set()
    for position in range(len(pictures)):
        number = pictures.order.pick(position).item
        if number not in met:
            met.add(number)
            yield pictures.example(position)
        if len(met) == SHOWN:
            return


def _steps(run: Ready) -> str:
    loop, batch = run.config.loop, own_batch(run.config)
    epochs = loop.steps * batch / len(run.pictures)
    parts = f" in {loop.accumulation} parts" if loop.accumulation > 1 else ""
    beside = " and as many of the prior" if run.config.prior.prompts else ""
    return (
        f"{loop.steps:,} of {batch} pictures{beside}{parts}: {epochs:.3g} epochs, at a rate of {loop.optimizer.rate:g}"
    )


def _forecast(stage: FineTuning, positions: range, device: torch.device) -> Forecast:
    part = default_collate([stage.example(position) for position in positions])
    return memory(stage.module, part, stage.loop, device)


def _free(run: Ready, device: torch.device) -> int | None:
    """Bytes that a run can have; on a CPU with those that its weights have taken already."""
    found = batching.memory(device)
    if found is None:
        return None
    loaded = sum(one.nbytes for one in run.prepared.module.parameters()) if device.type == "cpu" else 0
    return found.free + loaded


def _memory(forecast: Forecast, free: int | None) -> Iterator[str]:
    parts = ", ".join(
        f"{name} {_bytes(size)}" for name in KINDS if (size := getattr(forecast, name)) > forecast.peak / 500
    )
    yield f"{_bytes(forecast.peak)} at most: {parts}"
    if forecast.note:
        yield forecast.note
    if free is not None and forecast.peak > free:
        yield f"MORE THAN IS FREE, {_bytes(free)}: {_remedy(forecast)}"


def _remedy(forecast: Forecast) -> str:
    if forecast.activations + forecast.temporaries > forecast.gradients + forecast.optimizer:
        return "set loop.checkpointing = true, a larger loop.accumulation, or a smaller data.size"
    return 'take mode = "lora", loop.ema = 0, or optimizer.kind = "adamw8bit"'


def _disk(run: Ready, forecast: Forecast, free: int) -> Iterator[str]:
    """What checkpoints take: weights, averages and what the optimizer remembers; snapshots of averages are all kept."""
    loop = run.config.loop
    weights = sum(parameter.nbytes for parameter in run.prepared.trained.values())
    one = weights * (1 + bool(loop.ema) + len(loop.ema_lengths)) + forecast.optimizer
    times = -(-loop.steps // loop.checkpoint_every)
    kept = min(loop.keep, times)
    snapshots = times * len(loop.ema_lengths) * weights
    told = f"{_bytes(one)} a checkpoint, of which {kept} are kept"
    yield told + (f"; {_bytes(snapshots)} of averages, of which all are" if snapshots else "")
    if (whole := min(kept + 1, times) * one + snapshots) > free:  # a new one is written before an old one goes
        remedy = "raise loop.checkpoint_every" if snapshots > one else "lower loop.keep"
        yield f"MORE THAN IS FREE, {_bytes(free)}, for it takes {_bytes(whole)}: {remedy}"


def _time(
    run: Ready, stage: FineTuning, draw: Draw, output: Path, forecast: Forecast, device: torch.device
) -> Iterator[str]:
    try:
        found = durations(run, stage, draw, output, device)
    except (MemoryError, RuntimeError) as error:
        if not is_full(error):
            raise
        yield f"not measured, for a step did not fit into memory: {_remedy(forecast)}"
        return
    yield from _durations(found)


def _durations(found: Durations) -> Iterator[str]:
    step = found.step
    remedy = ": raise loop.workers" if step.waiting > WAITING else ""
    yield f"{step.seconds:.3g} s a step, {step.waiting:.0%} of it waiting for pictures{remedy}"
    if step.peak:
        yield f"in {_bytes(step.peak)} of the GPU's memory, as measured"
    parts = {
        "encoding pictures": found.encoding,
        "drawing the prior's": found.prior,
        "training": found.steps,
        "drawing samples": found.drawing,
        "measuring": found.measuring,
    }
    told = ", ".join(f"{name} {_duration(taken)}" for name, taken in parts.items() if taken)
    yield f"about {_duration(found.whole)} in all: {told}"


def _block(name: str, lines: list[str]) -> Iterator[str]:
    """Lines with a name to the left of the first; long ones are folded."""
    for number, line in enumerate(lines):
        folded = wrap(line, _WIDTH - _LEFT, subsequent_indent="   ", break_long_words=False, drop_whitespace=True) or [
            ""
        ]
        for part, text in enumerate(folded):
            yield f"{name if number == part == 0 else '':{_LEFT}}{text}"


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
