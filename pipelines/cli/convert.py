"""`ldm convert SRC DST`: weights in another format."""

import argparse
from typing import Any

from pipelines.cli.generate import notes, print_path
from pipelines.cli.parser import add_reading

HELP = """\
Writes weights in another format and prints the path written. What SRC is, it says itself:

  a model              a folder of diffusers (also sharded or of a variant), a single file (.safetensors, .ckpt, ...) or
                       a hub id, to a folder of diffusers or a file in the layout that A1111 and ComfyUI read
  a VAE, a ControlNet  by itself, from either layout to the other
  a LoRA               in any layout, to that of peft (which diffusers reads) or of kohya (which everybody reads)
  a textual inversion  in any layout, to that of diffusers
  a T2I-Adapter        to a folder of diffusers, or to a file under the names it has
  an IP-Adapter, a tiny autoencoder (TAESD)
                       to a file under the names it has

DST is a folder of diffusers, or a file if it ends in .safetensors; nothing is written as a pickle (.ckpt, .pt, .bin).
Weights keep their dtype and every bit unless you ask for another dtype. DST appears complete or not at all."""
ABSENT = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
OPTIONS = ("overwrite", "layout", "variant", "vae", "text_encoder", "prediction_type", "extract_ema", "prune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `ldm convert`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SRC", help="file, folder or hub id")
    parser.add_argument("target", metavar="DST", help="NAME.safetensors, or a folder")
    dtypes = parser.add_mutually_exclusive_group()
    dtypes.add_argument("--dtype", metavar="NAME", help="float32, float16 or bfloat16 (default: as each tensor is)")
    dtypes.add_argument(
        "--half",
        action="store_const",
        const="float16",
        dest="dtype",
        help="the same as --dtype float16: all weights, also those of SDXL's VAE, which is still run in float32 here; "
        "a weight too large for float16 is an error",
    )
    parser.add_argument(
        "--extract-ema", action="store_true", help="take the averaged weights that a training left in the file"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="from file to file: leave out what a model does not need, such as averaged weights beside the others and "
        "the state of a training (default: keep all tensors; a folder never holds them)",
    )
    parser.add_argument("--variant", metavar="NAME", help="weights of SRC to read, such as fp16")
    parser.add_argument("--vae", metavar="PATH", help="VAE to write instead of the model's, or because SRC lacks one")
    parser.add_argument(
        "--text-encoder", metavar="PATH", help="a model whose text encoder to write, where SRC lacks one"
    )
    parser.add_argument("--layout", choices=("peft", "kohya"), help="of a LoRA (default: peft)")
    add_reading(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it is there")


def convert(args: argparse.Namespace) -> None:
    """Converts what the arguments name. Raises ValueError for what the person can change."""
    from ldm.checkpoint.convert import Options
    from ldm.checkpoint.convert import convert as run
    from pipelines.device import as_dtype

    dtype = None if args.dtype is None else as_dtype(args.dtype)
    chosen: dict[str, Any] = {name: getattr(args, name) for name in (*OPTIONS, "allow_unknown_globals")}
    try:
        with notes(quiet=False):
            written = run(args.source, args.target, Options(dtype=dtype, **chosen))
    except ABSENT as error:
        raise ValueError(str(error)) from error
    print_path(str(written))
