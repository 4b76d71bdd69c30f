"""ControlNets on the command line: each with the picture it follows."""

import argparse
from typing import TYPE_CHECKING, Any

from pipelines.cli.values import finite, number

if TYPE_CHECKING:
    from PIL.Image import Image

SETTINGS = {  # of each ControlNet: the option, where argparse keeps it, and the argument of a request
    "--control-scale": ("control_scales", "controlnet_conditioning_scale"),
    "--control-start": ("control_starts", "control_guidance_start"),
    "--control-end": ("control_ends", "control_guidance_end"),
}


def add_controlnet(group: argparse._ActionsContainer) -> None:
    """All may be given several times: the first of each belong together, the second, and so on."""
    again: dict[str, Any] = {"action": "append", "default": []}
    group.add_argument(
        "--controlnet",
        dest="controlnets",
        metavar="PATH",
        help="a ControlNet for the model: a folder, file or hub id; may be given several times, as the options below",
        **again,
    )
    group.add_argument(
        "--control-image",
        dest="control_images",
        metavar="FILE",
        help="the picture that it follows; the drawn one has its size, unless --size says otherwise",
        **again,
    )
    helps = {
        "--control-scale": (finite, "X", "how closely (default: 1)"),
        "--control-start": (share, "SHARE", "of the steps, from which it acts (default: 0)"),
        "--control-end": (share, "SHARE", "of the steps, up to which it acts (default: 1)"),
    }
    for option, (kind, metavar, text) in helps.items():
        group.add_argument(option, type=kind, dest=SETTINGS[option][0], metavar=metavar, help=text, **again)


def share(text: str) -> float:
    return number(text, float, lambda value: 0 <= value <= 1, "a share from 0 to 1, such as 0.5")


def control_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a request, with the pictures read. Raises ValueError where they are not as many as ControlNets,
    or cannot be read."""
    count = len(args.controlnets)
    if len(args.control_images) != count:
        raise ValueError(
            f"there are {count} of --controlnet and {len(args.control_images)} of --control-image: give one for each"
        )
    given = {option: getattr(args, place) for option, (place, _) in SETTINGS.items()}
    for option, values in given.items():
        if len(values) not in ({0, 1, count} if count else {0}):
            raise ValueError(f"there are {count} of --controlnet and {len(values)} of {option}: give one for each")
    if not count:
        return {}
    settings = {
        SETTINGS[option][1]: values if len(values) > 1 else values[0] for option, values in given.items() if values
    }
    return {"control_image": [_picture(path) for path in args.control_images], **settings}


def _picture(path: str) -> "Image":
    """The right way up, as its EXIF orientation says."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from None
