"""From nothing to the first picture: imports, loading and drawing in a fresh process, ours and diffusers in turn.

    python benchmarks/startup.py [--model FOLDER] [--rounds 5] [--threads 2] [--dtype float32] [--json FILE]

Both draw "a cat holding a banana" from the same folder (by default the embedded model) on the CPU, with the sampler of
the folder, the steps and the guidance that are our defaults for it, and the same noise. A third process is the command
`ldm "a cat holding a banana"`. One round beforehand, which is not counted, brings the files into the system's cache.

Prints medians of seconds for imports, loading and drawing, and of wall time, processor time and peak resident memory
(Linux, macOS) of the whole process, with ours as a share of theirs and a bootstrap 95 % interval. The pictures of the
two must agree to 5 of 255 levels on average, else the exit status is 1 and there is no ratio. The last line is one line
of ratios. With the embedded model the command's aim is under 5 s and 1.2 GB on two cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import ROOT, Ratio, child, machine, ratio, table, versions, write_json

PROMPT = "a cat holding a banana"
EMBEDDED = ROOT / "ldm" / "weights" / "emoji-scenes"
SIDES = ("ours", "diffusers", "command")
COLUMNS = {
    "imports": "imports s",
    "load": "load s",
    "draw": "first image s",
    "wall": "wall s",
    "cpu": "processor s",
    "memory": "peak GB",
}
ALIKE = 5.0  # levels of 255

Measured = dict[str, float]  # by the keys of COLUMNS
Runs = dict[str, list[Measured]]  # by side


def draw(side: str, options: argparse.Namespace) -> None:
    """In the child: imports, loads, draws and saves, and prints what each took."""
    start = time.perf_counter()
    made: Any
    if side == "ours":
        from pipelines import TextToImagePipeline as made
    else:
        from diffusers import StableDiffusionPipeline as made
    import torch

    imported = time.perf_counter()
    own = {"device": "cpu"} if side == "ours" else {"torch_dtype": torch.float32}
    given = {"torch_dtype": getattr(torch, options.dtype)} if options.dtype else {}
    pipe = made.from_pretrained(options.model, **{**own, **given})
    pipe.set_progress_bar_config(disable=True)
    ready = time.perf_counter()
    count = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    images = pipe(PROMPT, generator=torch.Generator().manual_seed(1), **count).images
    images[0].save(f"{side}.png")
    drawn = time.perf_counter()
    print(json.dumps({"imports": imported - start, "load": ready - imported, "draw": drawn - ready}))


def measure(side: str, options: argparse.Namespace, folder: str) -> Measured:
    """One process from start to end."""
    common = ["--model", str(options.model), "--steps", str(options.steps)]
    common += ["--dtype", options.dtype] if options.dtype else []
    if side == "command":
        command = [sys.executable, "-m", "pipelines.cli", PROMPT, "--device", "cpu", "--seed", "1", *common]
        command += ["--guidance-scale", str(options.guidance)]
    else:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", side, *common]
        command += ["--guidance", str(options.guidance)]
    run = child(command, threads=options.threads, folder=folder)
    stages: Measured = {} if side == "command" else run.answer
    return {**stages, "wall": run.wall, "cpu": run.cpu, "memory": run.memory}


def difference(folder: Path) -> float:
    """Mean absolute difference of the two pictures, in levels of 255; infinite if they have different sizes."""
    import numpy
    from PIL import Image

    ours, theirs = (numpy.asarray(Image.open(folder / f"{side}.png").convert("RGB"), float) for side in SIDES[:2])
    return float(abs(ours - theirs).mean()) if ours.shape == theirs.shape else float("inf")


def own_defaults(folder: Path) -> tuple[int, float]:
    """Steps and guidance that ours takes for a folder where none are named."""
    from ldm.vocabulary import read_vocabulary

    vocabulary = read_vocabulary(folder)
    own = vocabulary.defaults if vocabulary else {}
    return int(own.get("num_inference_steps", 50)), float(own.get("guidance_scale", 7.5))


def shares(runs: Runs) -> dict[str, Ratio]:
    """Ours over diffusers, by column."""
    return {key: ratio([run[key] for run in runs["ours"]], [run[key] for run in runs["diffusers"]]) for key in COLUMNS}


def report(runs: Runs, ratios: dict[str, Ratio]) -> str:
    rows = []
    for side, kept in runs.items():
        columns = [median(run[key] for run in kept) if key in kept[0] else None for key in COLUMNS]
        rows.append([side, *(None if value is None else f"{value:.2f}" for value in columns)])
    rows.append(["ours / diffusers", *ratios.values()])
    return table([f"median of {len(runs['ours'])}", *COLUMNS.values()], rows)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="folder in diffusers format")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--steps", type=int, help="denoising steps (default: ours for the folder)")
    parser.add_argument("--guidance", type=float, help="guidance weight (default: ours for the folder)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: ours its own, diffusers float32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", choices=SIDES[:2], help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    if options.child:
        draw(options.child, options)
        return 0
    options.model = options.model.resolve()
    steps, guidance = own_defaults(options.model)
    options.steps, options.guidance = options.steps or steps, options.guidance or guidance
    head = f"{machine(options.threads)}\n{versions('torch', 'diffusers', 'transformers', 'tokenizers')}\n"
    head += (
        f"{options.model.name}, {options.steps} steps, guidance {options.guidance:g}, {options.dtype or 'own dtype'}"
    )
    print(head, flush=True)
    runs: Runs = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds + 1):
            for side in SIDES:
                runs[side].append(measure(side, options, folder))
        apart = difference(Path(folder))
    counted = {side: kept[1:] for side, kept in runs.items()}
    return finish(options, head, counted, apart)


def finish(options: argparse.Namespace, head: str, runs: Runs, apart: float) -> int:
    """Prints what was found. 1 if the pictures are not alike."""
    alike = apart <= ALIKE  # false for NaN
    content: dict[str, Any] = {"head": head, "runs": runs, "difference": apart, "alike": alike}
    print(f"\npictures of the two: {apart:.2f} of 255 levels apart on average, at most {ALIKE:g} allowed")
    if not alike:
        print("output gate: FAILED")
        write_json(options.json, content)
        return 1
    ratios = shares(runs)
    print(f"\n{report(runs, ratios)}\n")
    print("ours / diffusers: " + "; ".join(f"{key} {value}" for key, value in ratios.items()))
    write_json(options.json, {**content, "ratios": ratios})
    return 0


if __name__ == "__main__":
    sys.exit(main())
