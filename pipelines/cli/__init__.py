"""The command `ldm`. Nothing heavy is imported before a picture is drawn."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ldm.full_memory import is_full
from pipelines.cli import parser
from pipelines.cli.interrupt import CtrlC

DONE, FAILED, BAD_INPUT, INTERRUPTED, CLOSED_OUTPUT = 0, 1, 2, 130, 141  # exit statuses


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (by default this process's own) and returns the exit status; the errors are printed.

    0 done, 1 failed while running, 2 bad input, 130 interrupted, 141 nobody reads the output any more, 143 training
    ended by SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: keep pictures from being opened under its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    with CtrlC() as ctrl_c:
        return _guarded(arguments, ctrl_c)


def _guarded(arguments: list[str], ctrl_c: CtrlC) -> int:
    try:
        status = _run(arguments, ctrl_c)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _drop_output()
        return CLOSED_OUTPUT
    except KeyboardInterrupt as stop:
        status = getattr(stop, "status", INTERRUPTED)
        return _complain(str(stop) or "interrupted; nothing unfinished was kept", status)
    except Exception as error:
        if "--debug" in arguments:
            import traceback

            traceback.print_exc()
        if ctrl_c.pressed:  # what an interrupted import raises is another library's choice
            return _complain("interrupted; nothing unfinished was kept", INTERRUPTED)
        return _complain(*explained(error))


def _run(arguments: list[str], ctrl_c: CtrlC) -> int:
    try:
        args = parser.parse(arguments)
    except SystemExit as stop:  # argparse has printed the help or what is wrong
        return int(stop.code or DONE)
    if args.version:
        from pipelines.cli.doctor import version_line

        print(version_line())
        return DONE
    status = COMMANDS[args.command](args, ctrl_c)
    ctrl_c.check()
    return status


def _generate(args: argparse.Namespace, ctrl_c: CtrlC) -> int:
    from pipelines.cli.generate import generate

    generate(args, ctrl_c.check)
    return DONE


def _convert(args: argparse.Namespace, _: CtrlC) -> int:
    from pipelines.cli.convert import convert

    convert(args)
    return DONE


def _inspect(args: argparse.Namespace, _: CtrlC) -> int:
    from pipelines.cli.inspect import inspect

    inspect(args)
    return DONE


def _bench(args: argparse.Namespace, _: CtrlC) -> int:
    from pipelines.cli.bench import bench

    bench(args)
    return DONE


def _doctor(args: argparse.Namespace, _: CtrlC) -> int:
    from pipelines.cli.doctor import doctor

    return doctor(as_json=args.json)


def _evaluate(args: argparse.Namespace, _: CtrlC) -> int:
    from pipelines.cli.evaluate import evaluate

    evaluate(args)
    return DONE


def _train(args: argparse.Namespace, _: CtrlC) -> int:
    from pipelines.cli.train import train

    train(args)
    return DONE


def _vocabulary(args: argparse.Namespace, _: CtrlC) -> int:
    from pipelines.cli.vocabulary import vocabulary

    vocabulary(args)
    return DONE


COMMANDS: dict[str, Callable[[argparse.Namespace, CtrlC], int]] = {
    "generate": _generate,
    "bench": _bench,
    "convert": _convert,
    "doctor": _doctor,
    "evaluate": _evaluate,
    "inspect": _inspect,
    "train": _train,
    "vocabulary": _vocabulary,
}


def explained(error: Exception) -> tuple[str, int]:
    """What to tell the person, and the exit status: ValueError means that what was asked for cannot be done."""
    text = str(error) or type(error).__name__
    if isinstance(error, ValueError):
        return text, BAD_INPUT
    if isinstance(error, ImportError):
        return f"a library does not load ({text}); `ldm doctor` shows what is installed", FAILED
    if is_full(error):
        advice = "; ".join(getattr(error, "__notes__", ())) or "try a smaller --size, or --dtype float16 on a GPU"
        return f"out of memory: {advice} ({text.splitlines()[0]})", FAILED
    if isinstance(error, (OSError, ArithmeticError)):
        return text, FAILED
    return f"{type(error).__name__}: {text} (--debug shows where)", FAILED


def _complain(text: str, status: int) -> int:
    print(f"ldm: {text}", file=sys.stderr)
    return status


def _drop_output() -> None:
    """Points standard output elsewhere, so that Python's own flush at exit has nothing to complain about."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
