"""`ldm train RUN`: a model of emoji scenes from a run file."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from configs.files import read, run_file, run_names
from configs.training import RunConfig
from pipelines.cli.generate import notes
from pipelines.cli.interrupt import Stop
from pipelines.cli.parser import STAGES


def train(args: argparse.Namespace) -> None:
    """Trains what the arguments ask for, or lists the shipped run files.

    Raises ValueError for a run file that cannot be used, and `Stop` on Ctrl-C, once the trainer has kept its state.
    """
    if args.list:
        print_runs()
        return
    config = load(args)
    output = Path(args.output).expanduser() if args.output else Path("runs") / config.name
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is no folder: choose another place with -o")
    chosen = tuple(stage for stage in STAGES if stage in (args.stage or STAGES))

    from ldm.training import run

    try:
        with notes(quiet=False), told("ldm.training"):
            start = None if args.start is None else Path(args.start).expanduser()
            run.train(config, output, chosen, start=start, fresh=args.fresh, progress=not args.no_progress)
    except KeyboardInterrupt:
        raise Stop(f"interrupted; the same command goes on from the newest checkpoint in {output}") from None


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
        raise ValueError(f"name a run file: {', '.join(run_names())}, or a path (to draw a train: ldm generate train)")
    try:
        config = read(run_file(args.run), RunConfig)
    except OSError as error:
        raise ValueError(str(error)) from error
    return config if args.steps is None else cut(config, args.steps)


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
