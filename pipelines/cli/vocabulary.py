"""`ldm vocabulary`: what a model can draw."""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from pipelines.cli.generate import embedded_model

if TYPE_CHECKING:
    from ldm.vocabulary import Vocabulary

TABLES = ("colours", "places", "sizes", "counts", "relations", "styles")


def vocabulary(args: argparse.Namespace) -> None:
    """Prints the vocabulary of a model. Raises ValueError where it has none."""
    folder, found = read(args.model)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
        return
    width = max(40, min(shutil.get_terminal_size().columns, 120))
    print("\n".join(lines(found, folder.resolve().name, width)))


def read(model: str | None) -> "tuple[Path, Vocabulary]":
    """A model's folder and its vocabulary; of the model nothing else is loaded."""
    from ldm.checkpoint import resolve
    from ldm.vocabulary import FILE, read_vocabulary

    try:
        folder = resolve(model) if model else embedded_model()
    except OSError as error:
        raise ValueError(str(error)) from error
    if (found := read_vocabulary(folder)) is None:
        raise ValueError(f"{model} does not say what it can draw: it has no {FILE}; most models take any words")
    return folder, found


def lines(vocabulary: "Vocabulary", name: str, width: int) -> Iterator[str]:
    """The vocabulary for people: nouns in columns, other words in lists, examples at the end."""
    yield f"What {name} can draw, other names in brackets:"
    for kind, nouns in vocabulary.nouns.items():
        yield f"\n{kind} ({len(nouns)})"
        yield from columns([noun + (f" ({', '.join(names)})" if names else "") for noun, names in nouns.items()], width)
    yield ""
    for table in TABLES:
        if words := getattr(vocabulary, table):
            yield fill(", ".join(words), width, initial_indent=f"{table:12}", subsequent_indent=" " * 12)
    if vocabulary.examples:
        yield "\nexamples"
        yield from (f"  ldm {quoted(example)}" for example in vocabulary.examples)


def columns(items: Sequence[str], width: int) -> Iterator[str]:
    """Items in columns of one width, read downwards."""
    cell = max(map(len, items)) + 2
    rows = -(-len(items) // max(1, (width - 2) // cell))
    for row in range(rows):
        yield "  " + "".join(f"{item:{cell}}" for item in items[row::rows]).rstrip()


def quoted(text: str) -> str:
    """For a shell, of any kind if there are no quotes in the text."""
    return f"'{text}'" if '"' in text else f'"{text}"'
