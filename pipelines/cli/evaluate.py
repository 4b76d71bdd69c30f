"""`ldm evaluate`: how often a model draws what it is asked for, by a checker that knows the world of emoji scenes."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.shortcuts import NAMES as SHORTCUTS

if TYPE_CHECKING:
    from ldm.data.emoji_scenes.world import World
    from ldm.evaluation.baselines import Draw
    from ldm.evaluation.measure import Amount
    from ldm.evaluation.report import Report
    from pipelines.text_to_image import TextToImagePipeline

GUIDANCE = (1.0, 2.0, 3.5, 5.0, 7.5)
STEPS = (8, 15, 25)
SAMPLERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc")
SWEPT, SHOWN = 40, 32  # prompts of each setting of a sweep, and of the sheet
RECORDED = (
    "model",
    "model_hash",
    "sampler",
    "steps",
    "guidance_scale",
    "width",
    "height",
    "dtype",
    "device",
    "versions",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ldm evaluate`."""
    from pipelines.cli.parser import MODEL_HELP
    from pipelines.cli.shortcuts import add_shortcuts
    from pipelines.cli.values import finite, positive, seed

    add = parser.add_argument
    add("-m", "--model", metavar="PATH", help=MODEL_HELP)
    add("--world", metavar="RUN", help="run file whose [world] is asked for (default: the model's vocabulary)")
    add("--splits", metavar="A,B", help="splits to measure (default: all that the world has)")
    add("--prompts", type=positive, default=200, metavar="N", help="prompts of each split (default: 200)")
    add("--seeds", type=positive, default=4, metavar="N", help="pictures of each prompt (default: 4)")
    add("--seed", type=seed, default=0, metavar="N", help="the first seed (default: 0)")
    add("--batch", type=positive, default=16, metavar="N", help="pictures drawn at once (default: 16)")
    add("--steps", type=positive, dest="num_inference_steps", metavar="N", help="denoising steps")
    add("--guidance-scale", type=finite, metavar="W", help="how closely to follow the prompt; 1 is off")
    add("--sampler", metavar="NAME", help="such as dpmpp_2m, euler_a or ddim (default: the model's)")
    add_shortcuts(parser)
    add("--sweep", action="store_true", help=f"also guidance x steps, and samplers, on {SWEPT} prompts each")
    add("--baselines", action="store_true", help="also the nearest training caption, and the model without a prompt")
    add("--validate", action="store_true", help="also the checker itself, on renders and through the autoencoder")
    add("--checker-only", action="store_true", help="validate the checker and draw nothing; needs no model")
    add("-o", "--output", metavar="FILE", help="the report as JSON; replaced if it exists")
    add("--markdown", metavar="FILE", help="the tables for a model card; replaced if it exists")
    add("--grid", metavar="FILE", help=f"{SHOWN} prompts x 4 seeds as a PNG, bordered green or red by verdict")
    add("--device", metavar="NAME", help="cuda, cuda:1 or cpu (default: cuda where there is one)")
    add("--dtype", metavar="NAME", help="float32, float16, bfloat16 or auto (default: float32 on the CPU)")
    add("-q", "--quiet", action="store_true", help="no word about how far it is")


def evaluate(args: argparse.Namespace) -> None:
    """Measures what the arguments ask for, prints the tables and writes the files.

    Raises ValueError for what the person can change; a report that is interrupted keeps the splits that were finished.
    """
    pipe = None if args.checker_only else _load(args)
    world = _world(args, pipe)

    from ldm.evaluation.checker import Checker
    from ldm.evaluation.measure import Amount, splits_for
    from ldm.evaluation.report import Report, as_text

    tell = _silent if args.quiet else _tell
    splits = splits_for(world, filter(None, (args.splits or "").replace(" ", "").split(",")))
    amount = Amount(args.prompts, args.seeds, args.batch, args.seed)
    checker, report = Checker(world=world), Report(_settings(args, splits))
    if args.validate or args.checker_only:
        _validate(report, checker, splits, args, pipe, tell)
    if pipe is not None:
        _measure(report, pipe, checker, splits, amount, args, tell)
    _write(report, args)
    print(as_text(report), flush=True)


def _load(args: argparse.Namespace) -> "TextToImagePipeline":
    from pipelines.cli.generate import load_pipeline

    pipe = load_pipeline(args.model, dtype=args.dtype, device=args.device, quantize=args.quantize)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _world(args: argparse.Namespace, pipe: "TextToImagePipeline | None") -> "World":
    """The run file's world, else the model's, else everything that can be judged."""
    from configs.files import read, run_file
    from configs.training import RunConfig, WorldConfig
    from ldm.evaluation.worlds import checked_world, flat

    if args.world is not None:
        try:
            return flat(read(run_file(args.world), RunConfig).world)
        except OSError as error:
            raise ValueError(str(error)) from error
    vocabulary = None if pipe is None else pipe.model.vocabulary
    return flat(WorldConfig()) if vocabulary is None else checked_world(vocabulary)


def _settings(args: argparse.Namespace, splits: tuple[str, ...]) -> dict[str, Any]:
    """What was asked for; what the pipeline made of it is added once it has drawn."""
    names = ("prompts", "seeds", "seed")
    return {"splits": ", ".join(splits), **{name: getattr(args, name) for name in names}}


def _validate(
    report: "Report", checker: Any, splits: tuple[str, ...], args: argparse.Namespace, pipe: Any, tell: Any
) -> None:
    from ldm.data.emoji_scenes.generator import EmojiScenes
    from ldm.evaluation.validate import validation

    vae = None if pipe is None else pipe.model.autoencoder
    for split in splits:
        tell(f"the checker on {split}")
        report.validation |= validation(checker, [EmojiScenes(split, world=checker.world)], args.prompts, vae)


def _measure(
    report: "Report", pipe: Any, checker: Any, splits: tuple[str, ...], amount: "Amount", args: Any, tell: Any
) -> None:
    """Split by split, each written as soon as it is there; then baselines, sweeps and the sheet."""
    from ldm.data.emoji_scenes.generator import EmojiScenes
    from ldm.evaluation.measure import measured

    draw = _drawer(pipe, report, args)
    for split in splits:
        tell(f"drawing {split}")
        found = measured(draw, checker, EmojiScenes(split, world=checker.world), amount)
        report.splits[split], report.kinds[split] = found["all"], found["kinds"]
        _write(report, args)
        tell(f"  joint {found['all']['joint']}")
    if args.baselines:
        _baselines(report, draw, checker, splits, amount, tell)
    if args.sweep:
        _sweep(report, pipe, checker, amount, args, tell)
    if args.grid:
        tell("the sheet")
        _grid(draw, checker, args)


def _drawer(pipe: Any, report: "Report", args: argparse.Namespace, **changed: Any) -> "Draw":
    """The pipeline as a function of prompts and seeds; what it records goes to the report's settings once."""
    names = ("num_inference_steps", "guidance_scale", "sampler", *SHORTCUTS)
    given = {name: getattr(args, name) for name in names} | changed
    options = {name: value for name, value in given.items() if value is not None}

    def draw(prompts: list[str], seeds: list[int]) -> Any:
        result = pipe(prompts, seed=seeds, output_type="pt", **options)
        if not changed and "model_hash" not in report.settings:
            record = result.records[0]
            report.settings |= {name: record.get(name) for name in RECORDED}
            report.settings |= {name: record[name] for name in (*SHORTCUTS, "quantize") if name in record}
        return result.images * 2 - 1

    return draw


def _baselines(
    report: "Report", draw: "Draw", checker: Any, splits: tuple[str, ...], amount: "Amount", tell: Any
) -> None:
    from dataclasses import replace

    from ldm.data.emoji_scenes.generator import EmojiScenes
    from ldm.evaluation.baselines import Retrieval, unconditional
    from ldm.evaluation.measure import measured

    tell("baseline: the nearest training caption")
    retrieval = Retrieval(EmojiScenes("train", seed=1, world=checker.world), size=checker.size)
    few = replace(amount, prompts=min(amount.prompts, 100))
    doors: dict[str, tuple[Draw, Amount]] = {
        "retrieval": (retrieval, replace(amount, seeds=1)),
        "unconditional": (unconditional(draw), few),
    }
    for name, (door, much) in doors.items():
        tell(f"baseline: {name}")
        report.baselines[name] = {
            split: measured(door, checker, EmojiScenes(split, world=checker.world), much)["all"] for split in splits
        }


def _sweep(report: "Report", pipe: Any, checker: Any, amount: "Amount", args: Any, tell: Any) -> None:
    """On scenes held out for choosing, not on those that are reported: iid scenes of another seed."""
    from dataclasses import replace

    from ldm.data.emoji_scenes.generator import EmojiScenes
    from ldm.evaluation.measure import compared

    data = EmojiScenes("iid", seed=1, fate="validation", world=checker.world)
    few = replace(amount, prompts=min(amount.prompts, SWEPT), seeds=1)
    grid = {
        f"guidance {scale:g}, {steps} steps": _drawer(
            pipe, report, args, guidance_scale=scale, num_inference_steps=steps
        )
        for scale in GUIDANCE
        for steps in STEPS
    }
    report.sweeps["guidance scale and steps"] = compared(grid, checker, data, few, tell)
    samplers = {name: _drawer(pipe, report, args, sampler=name) for name in SAMPLERS}
    report.sweeps["sampler"] = compared(samplers, checker, data, few, tell)


def _grid(draw: "Draw", checker: Any, args: argparse.Namespace) -> None:
    from ldm.data.emoji_scenes.generator import EmojiScenes
    from ldm.evaluation.sheet import save_sheet, sheet
    from ldm.evaluation.validate import scenes_of

    rows = []
    for number, scene in enumerate(scenes_of(EmojiScenes("iid", seed=2, world=checker.world), SHOWN)):
        seeds = [args.seed + 4 * number + k for k in range(4)]
        images = draw([scene.caption] * len(seeds), seeds).float().cpu()
        rows.append((scene.caption, images, [checker.check(image, scene.plan).joint for image in images]))
    save_sheet(sheet(rows, across=2), Path(args.grid))


def _write(report: "Report", args: argparse.Namespace) -> None:
    from ldm.evaluation.report import as_markdown, write_text

    if args.output:
        report.save(args.output)
    if args.markdown:
        write_text(args.markdown, as_markdown(report))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """Nothing."""
