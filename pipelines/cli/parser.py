"""The words of the command line, read with the standard library alone."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from pipelines.cli.controlnet import add_controlnet
from pipelines.cli.shortcuts import add_shortcuts
from pipelines.cli.values import finite, natural, output, positive, scaled, seed, size

MODEL_HELP = (
    "folder in diffusers format, a single file (.safetensors, .ckpt, ...), or a hub id such as org/name "
    "(default: the embedded model of emoji scenes)"
)

DTYPE_HELP = (
    "float32, float16, bfloat16, or auto: bfloat16 where the device has it natively (default: float32 on the CPU, half "
    "precision on CUDA)"
)

DESCRIPTION = """\
Draws pictures of what you describe, with the embedded model of emoji scenes or any Stable Diffusion 1.x, 2.x or SDXL
model.

  ldm "a cat holding a banana"
  ldm "a blue owl left of a book at the beach" -n 4 --seed 7 -o "owls/{seed}.png"
  ldm "a cat holding a banana" --model path/to/model
  ldm "a cat holding a banana" --model path/to/model --steps 30 --guidance-scale 7.5 --seed 7 --size 512x768 -o out.png
  ldm "a cat holding a banana" --model path/to/model --lora path/to/style.safetensors:0.8 -o styled.png
  ldm "a cat holding a banana" --model path/to/model --controlnet path/to/edges --control-image path/to/edges.png
  ldm a cat holding a banana -m path/to/model --sampler dpmpp_2m --karras --negative "blurry" -n 4 --json
  ldm bench --model path/to/model --dtype auto
  echo "a cat holding a banana" | ldm - -m path/to/model -o "cats/{seed}.png"
"""
COMMANDS_HELP = """\
commands (the first word is one only if it names one; `ldm help COMMAND` tells more):
  generate PROMPT       draw; the word can be left out (`ldm generate doctor` and `ldm -- doctor` draw a doctor)
  vocabulary            list what the embedded model can draw
  evaluate              measure how often a model draws what it is asked for
  train RUN             fine-tune on your own pictures, or train from nothing, as a run file says
  inspect PATH          say what a file or folder of weights holds, without loading it
  convert SRC DST       write a model, LoRA or part of a model in another format
  bench                 measure how fast a model draws on this machine
  doctor                show versions, devices and where the packages come from
  help                  show this

Standard output has the paths of the pictures and nothing else. Nothing is ever overwritten.
Exit status: 0 done, 1 failed while running, 2 bad input, 130 interrupted, 141 output closed, 143 terminated.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments with the command's name; SystemExit after printing help or a usage error."""
    command = arguments[0] if arguments and arguments[0] in (*PARSERS, "help") else None
    topic = arguments[1] if command == "help" and arguments[1:] and arguments[1] in PARSERS else "generate"
    if command == "help" or not arguments:
        parser = PARSERS[topic]()
        parser.print_help()
        parser.exit()
    if command not in (None, "generate"):
        return PARSERS[command]().parse_args(arguments[1:], argparse.Namespace(command=command, version=False))
    parser = _generate_parser()
    options, words = _split(arguments[1:] if command else arguments)
    args = parser.parse_intermixed_args(options, argparse.Namespace(command="generate"))
    args.words += words
    if not args.words and not args.version:
        parser.error("there is no prompt: say what to draw")
    return args


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What comes before and after `--`, behind which every word belongs to the prompt."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


class Parser(argparse.ArgumentParser):
    """With errors in one line that say where to look, and help that notices a closed output."""

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        prompt = "; a prompt that begins with - goes behind --" if self.prog == "ldm" else f"; {self.epilog}"
        hint = prompt if "unrecognized" in message else ""
        self.exit(2, f"ldm: {message}{hint} (see {self.prog} --help)\n")


def _generate_parser() -> Parser:
    parser = Parser(
        prog="ldm",
        usage='ldm "PROMPT" [options]\n       ldm vocabulary|evaluate|train|inspect|convert|bench|doctor|help [...]',
        description=DESCRIPTION,
        epilog=COMMANDS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="what to draw, in words; - reads it from stdin")
    _add_picture(parser.add_argument_group("the picture"))
    _add_sampling(parser.add_argument_group("how it is drawn"))
    add_controlnet(parser.add_argument_group("what it follows"))
    add_shortcuts(parser.add_argument_group("faster or smaller, at the cost of the picture"))
    _add_output(parser.add_argument_group("output"))
    return parser


def add_reading(parser: argparse._ActionsContainer) -> None:
    """What a person may know about a model's file."""
    parser.add_argument(
        "--prediction-type",
        choices=("epsilon", "v_prediction"),
        help="what the model predicts, where its file does not say (default: found out)",
    )
    parser.add_argument(
        "--allow-unknown-globals",
        action="store_true",
        help="read a .ckpt though it names code that weights do not need; that is never run",
    )


def _add_picture(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-m", "--model", metavar="PATH", help=MODEL_HELP)
    group.add_argument(
        "--vae",
        metavar="PATH",
        help="VAE to use instead of the model's, or because its file lacks one; a tiny one (TAESD) is faster, and "
        "details suffer",
    )
    group.add_argument(
        "--text-encoder", metavar="PATH", help="a model whose text encoder to use, where the model's file lacks one"
    )
    group.add_argument(
        "--lora",
        type=scaled,
        action="append",
        default=[],
        dest="loras",
        metavar="FILE[:SCALE]",
        help="a LoRA in any format, by default at scale 1; may be given several times",
    )
    add_reading(group)
    group.add_argument("--negative", dest="negative_prompt", metavar="TEXT", help="what to keep out of the picture")
    group.add_argument("--size", type=size, metavar="WxH", help="width x height in pixels (default: the model's)")
    group.add_argument("--seed", type=seed, metavar="N", help="the same seed gives the same picture (default: random)")
    group.add_argument(
        "-n", type=positive, default=1, dest="count", metavar="N", help="how many; each has its own seed"
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--steps",
        type=positive,
        dest="num_inference_steps",
        metavar="N",
        help="denoising steps (default: the model's, or 50)",
    )
    group.add_argument(
        "--guidance-scale",
        type=finite,
        metavar="W",
        help="how closely to follow the prompt; 1 is off (default: the model's, or 7.5, SDXL 5)",
    )
    group.add_argument("--sampler", metavar="NAME", help="such as dpmpp_2m, euler_a or ddim (default: the model's)")
    group.add_argument("--karras", action="store_const", const="karras", dest="grid", help="Karras noise levels")
    group.add_argument(
        "--prompt-syntax", choices=("plain", "a1111"), help="a1111 reads (word:1.3), [word] and BREAK (default: plain)"
    )
    group.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE[:TOKEN]",
        help="textual inversion: TOKEN in the prompt stands for it (default: the file's own, or its name)",
    )
    group.add_argument("--clip-skip", type=natural, metavar="N", help="layers of the text encoder to skip")
    group.add_argument("--device", metavar="NAME", help="cuda, cuda:1 or cpu (default: cuda where there is one)")
    group.add_argument(
        "--dtype",
        metavar="NAME",
        help=DTYPE_HELP,
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-o",
        "--output",
        type=output,
        metavar="PATH",
        help="PNG file, may hold {seed} and {index}, or a folder (default: PROMPT-SEED.png)",
    )
    group.add_argument("--json", action="store_true", help="print path, seed and record of each picture as JSON")
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing but paths and errors")
    group.add_argument("--no-progress", action="store_true", help="no progress bar (there is one only on a terminal)")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group.add_argument("--version", action="store_true", help="show versions")
    group.add_argument("-h", "--help", action="help", help="show this")


def _doctor_parser() -> Parser:
    parser = _command(
        "doctor",
        "Shows versions, devices and where the packages come from. "
        "Exit status 1 if another distribution shadows one of the packages.",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _vocabulary_parser() -> Parser:
    parser = _command("vocabulary", "Lists the words that a model was trained on: what it can draw.")
    parser.add_argument("-m", "--model", metavar="PATH", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def _evaluate_parser() -> Parser:
    from pipelines.cli.evaluate import add_arguments

    parser = _command("evaluate", "Measures how often a model draws what it is asked for.")
    add_arguments(parser)
    return parser


def _train_parser() -> Parser:
    from pipelines.cli.train import HELP, add_arguments

    parser = _command("train", HELP)
    add_arguments(parser)
    return parser


def _inspect_parser() -> Parser:
    from pipelines.cli.inspect import HELP, add_arguments

    parser = _command("inspect", HELP)
    add_arguments(parser)
    return parser


def _convert_parser() -> Parser:
    from pipelines.cli.convert import HELP, add_arguments

    parser = _command("convert", HELP)
    add_arguments(parser)
    return parser


def _bench_parser() -> Parser:
    from pipelines.cli.bench import HELP, add_arguments

    parser = _command("bench", HELP)
    add_arguments(parser)
    return parser


def _command(name: str, description: str) -> Parser:
    parser = Parser(
        prog=f"ldm {name}",
        description=description,
        epilog=f"To draw a picture of the word: ldm generate {name}",
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "generate": _generate_parser,
    "bench": _bench_parser,
    "convert": _convert_parser,
    "doctor": _doctor_parser,
    "evaluate": _evaluate_parser,
    "inspect": _inspect_parser,
    "train": _train_parser,
    "vocabulary": _vocabulary_parser,
}
