"""`ldm "PROMPT"`: draws pictures one by one; each is on disk before the next one begins."""

import argparse
import json
import logging
import os
import secrets
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.controlnet import control_options
from pipelines.cli.shortcuts import NAMES as SHORTCUTS

if TYPE_CHECKING:
    from pipelines.text_to_image import TextToImagePipeline

# options that go to the pipeline under their own names
REQUEST = (
    *("negative_prompt", "num_inference_steps", "guidance_scale", "sampler", "grid", "prompt_syntax", "clip_skip"),
    *SHORTCUTS,
)


def generate(args: argparse.Namespace, check: Callable[[], None]) -> None:
    """Draws what the arguments ask for and prints the paths, or one JSON document also when something goes wrong.

    `check` is called before each picture and raises when none is wanted any more.
    Raises ValueError for what the person can change, other exceptions for what failed on the way.
    """
    done: list[dict[str, Any]] = []
    try:
        with notes(args.quiet):
            for picture in draw(args, check):
                done.append(picture)
                if not args.json:
                    print_path(picture["path"])
    finally:
        if args.json:
            print(json.dumps({"images": done}, indent=2), flush=True)  # ASCII, whatever the locale


def draw(args: argparse.Namespace, check: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Path, seed and record of each picture once it is on disk."""
    prompt = read_prompt(args.words)
    first = secrets.randbelow(2**32) if args.seed is None else args.seed
    seeds = [(first + i) % 2**32 for i in range(args.count)]
    options = {name: getattr(args, name) for name in REQUEST if getattr(args, name) is not None}
    if args.negative_prompt is not None:
        options["negative_prompt"] = as_utf8(args.negative_prompt)
    if args.size is not None:
        options["width"], options["height"] = args.size
    options |= control_options(args)
    args.model = args.model or embedded_model()
    places = [place(args.output, prompt, seed, i) for i, seed in enumerate(seeds)]
    require_writable(places[0])
    embeddings = [embedding(text) for text in args.embedding]
    pipe = load(args)
    for file, token in embeddings:
        pipe.load_textual_inversion(file, token)
    load_loras(pipe, args.loras)
    check()
    if args.seed is None and not args.quiet:
        print(f"seed {first}", file=sys.stderr, flush=True)
    for i, (seed, path) in enumerate(zip(seeds, places, strict=True)):
        check()
        pipe.set_progress_bar_config(disable=not shows_progress(args), desc=f"{i + 1}/{args.count}", leave=False)
        result = pipe(prompt, seed=seed, **options)
        record = result.records[0]
        yield {"path": str(keep(result.images[0], record, path)), "seed": seed, "record": record}


def read_prompt(words: list[str]) -> str:
    """The words as one prompt; a single `-` stands for standard input."""
    prompt = " ".join(words)
    if prompt == "-":
        if sys.stdin is None:
            raise ValueError("the prompt - reads standard input, which is closed")
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the prompt on standard input is not UTF-8 ({error})") from None
    if not prompt.strip():
        raise ValueError("the prompt is empty: say what to draw")
    return as_utf8(prompt.strip())


def as_utf8(text: str) -> str:
    """Words of the command line, which Python reads as ASCII in the C locale, as what they nearly always are."""
    try:
        return text if text.isprintable() else os.fsencode(text).decode()
    except UnicodeError:
        return text  # the tokenizer says what is wrong with it


def embedded_model() -> Path:
    """The model drawn with where none is named. Raises ValueError where this build has none."""
    from ldm.checkpoint import embedded

    try:
        folder: Path = embedded()
    except OSError as error:
        raise ValueError(str(error)) from error
    return folder


def place(output: str | None, prompt: str, seed: int, index: int) -> Path:
    """Where a picture goes if nothing is there yet: the path given, or PROMPT-SEED.png in the folder given."""
    from pipelines.files import default_name, filled

    name = default_name(prompt, seed).encode(sys.getfilesystemencoding(), "ignore").decode(sys.getfilesystemencoding())
    if output is None:
        return Path(name)
    path = filled(output, seed=seed, index=index)
    return path / name if output.endswith("/") or os.path.isdir(path) else path  # Path.is_dir raises for long names


def require_writable(path: Path) -> None:
    """Raises ValueError before the work rather than after it, if nothing can be written there. Leaves no trace."""
    folder = path.parent
    try:
        while not folder.exists():
            folder = folder.parent
        (folder / path.name).exists()  # complains about names that are too long
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"{path} is no picture file: choose another place with -o")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {path} ({error.strerror}): choose another place with -o") from error


def load(args: argparse.Namespace) -> "TextToImagePipeline":
    """The model with the parts that are given."""
    from ldm.diffusion.registry import Sampling

    if args.sampler is not None:
        Sampling.from_name(args.sampler)  # a typing error should not cost the time of loading
    return load_pipeline(
        args.model,
        dtype=args.dtype,
        device=args.device,
        quantize=args.quantize,
        prediction_type=args.prediction_type,
        allow_unknown_globals=args.allow_unknown_globals,
        controlnet=args.controlnets,
        **{name: path for name in ("vae", "text_encoder") if (path := getattr(args, name)) is not None},
    )


def load_pipeline(model: Any, **options: Any) -> "TextToImagePipeline":
    """A model, by default the embedded one. What it holds or lacks is the person's to change, so its OSErrors become
    ValueErrors."""
    from pipelines import TextToImagePipeline

    try:
        return TextToImagePipeline.from_pretrained(model or embedded_model(), **options)
    except OSError as error:
        raise ValueError(str(error)) from error


def embedding(text: str) -> tuple[str, str | None]:
    """A textual inversion's file and the word for it, from FILE or FILE:TOKEN. ValueError if there is no such file."""
    from ldm.checkpoint.hub import resolve_part
    from ldm.checkpoint.kinds import EMBEDDING_FILES

    path, colon, token = text.rpartition(":")
    named, word = (path, token) if colon and token and not os.path.exists(text) else (text, None)
    file = resolve_part(named, EMBEDDING_FILES)
    if not file.exists():
        raise ValueError(f"there is no file {file}: --embedding takes FILE or FILE:TOKEN")
    return str(file), word


def load_loras(pipe: "TextToImagePipeline", given: list[tuple[str, float]]) -> None:
    for path, scale in given:
        try:
            pipe.load_lora(path, scale=scale)
        except OSError as error:
            raise ValueError(str(error)) from error


def keep(image: Any, record: dict[str, Any], path: Path) -> Path:
    """Writes the picture; where that has become impossible, to the folder for temporary files: it must not be lost."""
    from pipelines.files import write_png

    try:
        return write_png(image, record, path)
    except OSError as error:
        rescued = write_png(image, record, Path(tempfile.gettempdir()) / f"ldm-{record['seed']}.png")
        raise OSError(f"cannot write to {path} ({error.strerror}); the picture is safe in {rescued}") from error


def shows_progress(args: argparse.Namespace) -> bool:
    return not (args.quiet or args.no_progress) and sys.stderr is not None and sys.stderr.isatty()


def print_path(path: str) -> None:
    """One line at once; names that the terminal's encoding cannot show go out as the bytes they are on disk."""
    try:
        print(path, flush=True)
    except UnicodeEncodeError:
        sys.stdout.buffer.write(path.encode(sys.getfilesystemencoding(), "surrogateescape") + b"\n")
        sys.stdout.buffer.flush()


@contextmanager
def notes(quiet: bool) -> Iterator[None]:
    """Warnings as short notes without their place in the code, each once, or, when quiet, not at all."""
    shown = set[str]()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            print(f"ldm: note: {message}", file=sys.stderr)
        shown.add(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        if quiet:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
