"""Options that trade the picture's fidelity for speed, for every command that draws."""

import argparse
import math

from pipelines.cli.values import number, positive

QUANTIZE_HELP = (
    "hold attention and feed-forward weights in 8 bits, int8 or, on a GPU that multiplies it, fp8: less memory; needs "
    "torchao (default: whole weights)"
)
NAMES = ("deep_cache", "merge_tokens", "guidance_interval")  # of a request's arguments


def add_shortcuts(group: argparse._ActionsContainer) -> None:
    """All are off by default."""
    group.add_argument(
        "--deep-cache",
        type=positive,
        metavar="N",
        help="run the whole U-Net at every Nth step only, its outermost layers in between (default: 1, always)",
    )
    group.add_argument(
        "--merge-tokens",
        type=share,
        metavar="SHARE",
        help="merge this share of the U-Net's finest tokens in self-attention, up to 0.75; saves time in pictures of "
        "512 pixels and more (default: 0)",
    )
    group.add_argument(
        "--guidance-interval",
        type=interval,
        metavar="LOW,HIGH",
        help="noise levels sigma between which guidance acts; a step outside takes half the time (default: all)",
    )
    group.add_argument("--quantize", metavar="KIND", help=QUANTIZE_HELP)


def share(text: str) -> float:
    """A number from 0 to 0.75."""
    return number(text, float, lambda value: 0 <= value <= 0.75, "a share from 0 to 0.75, such as 0.5")


def interval(text: str) -> tuple[float, float]:
    """(low, high) from "0.3,20"."""
    try:
        low, high = (float(level) for level in text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low < high:
        raise argparse.ArgumentTypeError(f"{text!r} is no interval: write two noise levels LOW,HIGH such as 0.3,20")
    return low, high
