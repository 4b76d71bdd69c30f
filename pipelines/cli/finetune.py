"""`ldm train RUN` for a run file of fine-tuning."""

import argparse
import signal
from dataclasses import replace
from pathlib import Path

from configs.files import read
from configs.finetuning import FineTuneConfig
from pipelines.cli.generate import notes
from pipelines.cli.interrupt import Stop
from pipelines.cli.train import told


def finetune(args: argparse.Namespace, path: Path) -> None:
    """Trains, checks or verifies what the arguments ask for, and prints the paths of what was made.

    Raises ValueError for what cannot be used, and `Stop` on Ctrl-C or SIGTERM, once the state is kept.
    """
    if args.stage or args.start:
        raise ValueError("--stage and --from are for emoji scenes: here the run file names the model")
    if sum(map(bool, (args.check, args.verify, args.average))) > 1:
        raise ValueError("--check, --verify and --average each do something of their own: give one of them")
    if args.average and args.fresh:
        raise ValueError("--average is of the run that is there, and --fresh would throw it away: give one of them")
    config = read(path, FineTuneConfig)
    if args.steps is not None:
        config = replace(config, loop=replace(config.loop, steps=min(config.loop.steps, args.steps)))
    output = Path(args.output).expanduser() if args.output else Path("runs") / config.name
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is no folder: choose another place with -o")
    with notes(quiet=False), told("ldm.training"):
        if args.check:
            from ldm.training.check import check
            from pipelines.drawing import draw

            print(check(config, output, draw, progress=not args.no_progress))
        elif args.verify:
            from ldm.training.verify import verify
            from pipelines.drawing import draw

            print(verify(config, draw, progress=not args.no_progress))
        elif args.average:
            from ldm.training.finetune import average_again
            from pipelines.drawing import draw

            print(*average_again(config, output, draw, args.average), sep="\n")
        else:
            _train(args, config, output)


def _train(args: argparse.Namespace, config: FineTuneConfig, output: Path) -> None:
    from ldm.training.finetune import finetune
    from pipelines.drawing import draw

    options = {"fresh": args.fresh, "progress": not args.no_progress, "minutes": args.minutes}
    try:
        for made in finetune(config, output, draw, **options):
            print(made)
    except KeyboardInterrupt as stop:
        same = "the same command without --fresh" if args.fresh else "the same command"
        text = f"{str(stop) or 'interrupted'}; {same} goes on from the newest checkpoint in {output}"
        raise Stop(text, getattr(stop, "signal", signal.SIGINT)) from None
