"""`ldm train RUN`: fine-tuning on one's own pictures, or a model of emoji scenes from nothing, as the run file says."""

import argparse
import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from configs.files import is_fine_tuning, read, run_file, run_names, template, templates
from configs.training import STAGES, RunConfig
from pipelines.cli.generate import notes
from pipelines.cli.interrupt import Stop
from pipelines.cli.values import number, positive

HELP = (
    "Fine-tunes a model on your own pictures (begin with `ldm train --new lora`), or trains one of emoji scenes from "
    "nothing, stage by stage. What is finished is not done again, and what was interrupted goes on from its newest "
    "checkpoint. Ctrl-C (exit status 130) and SIGTERM (143) keep the state of the step they come in, on several "
    "processes of the next one in the log. On several processes: accelerate launch -m pipelines.cli train RUN"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `ldm train`."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="run file (.toml or .json), or the name of a shipped one")
    parser.add_argument("--list", action="store_true", help="list the run files that are shipped")
    parser.add_argument(
        "--new",
        metavar="KIND",
        help=f"write a commented run file of fine-tuning, of {', '.join(templates())}, to KIND.toml or to -o FILE",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="of fine-tuning: read everything, train nothing, and say what would be trained, on what, how long and in "
        "how much memory, and what looks like a mistake",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="of fine-tuning: a few steps at once and interrupted twice, which must give the same bits",
    )
    parser.add_argument(
        "--stage",
        type=stages,
        action="extend",
        metavar="NAME[,NAME]",
        help=f"of emoji scenes: of {', '.join(STAGES)} only these (default: all that are not finished)",
    )
    parser.add_argument(
        "--average",
        type=above_zero,
        metavar="LENGTH",
        help="of fine-tuning: write the results of a finished run again with weights averaged over LENGTH, a share of "
        "the run such as 0.1; its run file must have set loop.ema_lengths",
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="folder for all that is made (default: runs/NAME)")
    parser.add_argument(
        "--from",
        dest="start",
        metavar="MODEL",
        help="of emoji scenes: go on from a model of the same run file, training its denoiser further",
    )
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="end stages after N steps, to try a run; without it they go on"
    )
    parser.add_argument(
        "--minutes",
        type=above_zero,
        metavar="M",
        help="keep the state and leave after M minutes, with exit status 0; the same command goes on",
    )
    parser.add_argument("--fresh", action="store_true", help="begin these stages anew instead of going on")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def train(args: argparse.Namespace) -> None:
    """Trains what the arguments ask for, or lists the shipped run files.

    Raises ValueError for a run file that cannot be used, and `Stop` on Ctrl-C or SIGTERM, once the state is kept.
    """
    if args.list:
        print_runs()
        return
    if args.new is not None:
        print(begin(args.new, args.output))
        return
    if args.run is not None and is_fine_tuning(_file(args)):
        from pipelines.cli.finetune import finetune

        finetune(args, _file(args))
        return
    if args.check or args.verify or args.average:
        raise ValueError(
            "--check, --verify and --average are for run files of fine-tuning: `ldm train --new lora` writes one"
        )
    config = load(args)
    output = Path(args.output).expanduser() if args.output else Path("runs") / config.name
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is no folder: choose another place with -o")
    chosen = tuple(stage for stage in STAGES if stage in (args.stage or STAGES))

    from ldm.training import run

    try:
        with notes(quiet=False), told("ldm.training"):
            start = None if args.start is None else Path(args.start).expanduser()
            options = {"fresh": args.fresh, "progress": not args.no_progress, "minutes": args.minutes}
            run.train(config, output, chosen, start=start, **options)
    except KeyboardInterrupt as stop:
        same = "the same command without --fresh" if args.fresh else "the same command"
        text = f"{str(stop) or 'interrupted'}; {same} goes on from the newest checkpoint in {output}"
        raise Stop(text, getattr(stop, "signal", signal.SIGINT)) from None


@contextmanager
def told(name: str) -> Iterator[None]:
    """While in use, what a logger says goes to standard error, one line each."""
    logger, handler = logging.getLogger(name), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("ldm: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def load(args: argparse.Namespace) -> RunConfig:
    """The run file, its stages cut to the steps asked for."""
    if args.run is None:
        raise ValueError(
            f"name a run file: {', '.join(run_names())}, or a path, such as one that `ldm train --new lora` writes "
            "(to draw a train: ldm generate train)"
        )
    config = read(_file(args), RunConfig)
    return config if args.steps is None else cut(config, args.steps)


def _file(args: argparse.Namespace) -> Path:
    path = run_file(args.run)
    if not path.exists():
        raise ValueError(f"there is no run file {path}")
    return path


def begin(kind: str, output: str | None) -> Path:
    """Writes the commented run file of a kind, never over another; returns where."""
    text, path = template(kind), Path(output or f"{kind}.toml").expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path} is there already: choose another place with -o FILE.toml") from None
    return path


def cut(config: RunConfig, steps: int) -> RunConfig:
    """The run with no stage longer than `steps`."""
    for name in STAGES:
        stage = getattr(config, name)
        loop = replace(stage.loop, steps=min(steps, stage.loop.steps))
        config = replace(config, **{name: replace(stage, loop=loop)})
    return config


def print_runs() -> None:
    """Names of the shipped run files, each with the comment it begins with."""
    for name in run_names():
        first = run_file(name).read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:16}{first.lstrip('# ')}" if first.startswith("#") else name)


# kinds of values; argparse shows the text of ArgumentTypeError


def stages(text: str) -> list[str]:
    """Names of stages, separated by commas."""
    names = text.split(",")
    for name in names:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"{name!r} is no stage: there are {', '.join(STAGES)}")
    return names


def above_zero(text: str) -> float:
    return number(text, float, lambda value: 0 < value < math.inf, "a number above 0")
