"""`ldm bench`: how fast a model draws on this machine, and what each of the things done for it is worth."""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, replace
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.text_to_image import TextToImagePipeline

HELP = (
    "Measures how fast a model draws on this machine: loading, text, guided steps, decoding, memory. On a busy machine "
    "the numbers are those of a busy machine."
)
PROMPT = "a cat holding a banana"
WHOLE = "everything on"

Times = dict[str, list[float]]  # seconds of "text", "step" and "decode"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ldm bench`."""
    from pipelines.cli.parser import DTYPE_HELP, MODEL_HELP
    from pipelines.cli.shortcuts import QUANTIZE_HELP
    from pipelines.cli.values import finite, positive, several, size

    add = parser.add_argument
    add("-m", "--model", metavar="PATH", help=MODEL_HELP)
    add("--size", type=size, metavar="WxH", help="width x height in pixels (default: the model's)")
    add("--steps", type=several, default=4, metavar="N", help="steps of a round, the first uncounted (default: 4)")
    add("--rounds", type=positive, default=3, metavar="N", help="rounds, of which medians are taken (default: 3)")
    add("--guidance-scale", type=finite, metavar="W", help="1 measures steps without guidance (default: the model's)")
    add("--quantize", metavar="KIND", help=QUANTIZE_HELP)
    add("--ablate", action="store_true", help="also with each optimisation switched off, in turn")
    add("--device", metavar="NAME", help="cuda, cuda:1 or cpu (default: cuda where there is one)")
    add("--dtype", metavar="NAME", help=DTYPE_HELP)
    add("--json", action="store_true", help="the same as JSON")


def bench(args: argparse.Namespace) -> None:
    """Measures and prints. Raises ValueError for what the person can change."""
    from pipelines.cli.generate import load_pipeline

    begun = time.perf_counter()
    pipe = load_pipeline(args.model, dtype=args.dtype, device=args.device, quantize=args.quantize)
    found = {"load": time.perf_counter() - begun, **measured(pipe, args)}
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines(found)))


def measured(pipe: "TextToImagePipeline", args: argparse.Namespace) -> dict[str, Any]:
    """Medians in seconds, peak memory in bytes, and how much longer a step takes without each optimisation."""
    import torch

    from ldm.batching import memory
    from ldm.quantize import quantized

    options: dict[str, Any] = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    if args.size is not None:
        options["width"], options["height"] = args.size
    switches = [field.name for field in fields(pipe.speed) if args.ablate and getattr(pipe.speed, field.name)]
    ways = {WHOLE: pipe.speed, **{name: replace(pipe.speed, **{name: False}) for name in switches}}
    list(timed(pipe, options))  # warms up
    used = memory(pipe.device)
    times: dict[str, Times] = {name: defaultdict(list) for name in ways}
    for number in range(args.rounds + 1):
        for name, speed in ways.items():
            pipe.speed = speed
            for part, seconds in timed(pipe, options):
                if number:  # the first round warms up
                    times[name][part].append(seconds)
    pipe.speed = ways[WHOLE]
    step = median(times[WHOLE]["step"])
    return {
        "model": pipe.model.source,
        "device": str(pipe.device),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "quantize": quantized(pipe.unet),
        "threads": torch.get_num_threads(),
        "steps": _steps_of_a_picture(pipe),
        **{part: median(seconds) for part, seconds in times[WHOLE].items()},
        "peak memory": None if used is None else used.peak,
        "without": {name: median(times[name]["step"]) / step for name in switches},
    }


def timed(pipe: "TextToImagePipeline", options: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """One picture: the part of it that was done, and the seconds that took; of the steps the first does not count."""
    stamp = _clock(pipe)
    stream = pipe.stream(PROMPT, seed=0, **options)
    yield "text", stamp()
    for progress in stream:
        seconds = stamp()
        if progress.index:
            yield "step", seconds
    yield "decode", stamp()


def _clock(pipe: "TextToImagePipeline") -> Any:
    """A function that gives the seconds since its last call, or since it was made."""
    import torch

    last = time.perf_counter()

    def stamp() -> float:
        nonlocal last
        if pipe.device.type == "cuda":
            torch.cuda.synchronize(pipe.device)
        before, last = last, time.perf_counter()
        return last - before

    return stamp


def _steps_of_a_picture(pipe: "TextToImagePipeline") -> int:
    from pipelines.request import STEPS

    vocabulary = pipe.model.vocabulary
    own = {**pipe.model.defaults, **(vocabulary.defaults if vocabulary else {})}
    return int(own.get("num_inference_steps", STEPS))


def lines(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    precision = f"{found['dtype']}, weights in {found['quantize']}" if found["quantize"] else found["dtype"]
    yield f"{found['model']}, {precision} on {found['device']}, {found['threads']} threads"
    whole = found["text"] + found["steps"] * found["step"] + found["decode"]
    for name in ("load", "text", "step", "decode"):
        yield f"  {name:20}{1000 * found[name]:10.1f} ms"
    yield f"  {'picture':20}{whole:10.2f} s with {found['steps']} steps"
    if found["peak memory"] is not None:
        yield f"  {'peak memory':20}{found['peak memory'] / 1e9:10.2f} GB"
    if found["without"]:
        yield "a step takes so many times as long without"
        yield from (f"  {name:20}{ratio:10.2f}" for name, ratio in found["without"].items())
