"""A look through all pictures before a run: each is found, opened once, and kept or named in a report."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from configs.finetuning import DataConfig, SourceConfig
from ldm.data.pictures.captions import joined
from ldm.data.pictures.datasets import dataset_items, is_saved
from ldm.data.pictures.files import PICTURES
from ldm.data.pictures.folder import folder_items, table_items
from ldm.data.pictures.item import Item, Size, digest_of
from ldm.data.pictures.open import BadPicture, Opened, open_picture
from ldm.data.pictures.report import (
    DUPLICATE,
    EMPTY,
    HINT_SHAPE,
    NO_CAPTION,
    NO_HINT,
    SAME,
    SMALL,
    UNREADABLE,
    Findings,
    Report,
)
from ldm.data.pictures.shards import shard_items

THREADS, QUEUE = 16, 4096
STRETCH = 0.02  # by how much a hint's shape may differ from its picture's
Progress = Callable[[int, int], None]  # pictures looked at, of how many


def scan(config: DataConfig, progress: Progress | None = None) -> tuple[list[Item], Report]:
    """The pictures of all sources that can be trained on, and what was found wrong.

    Every picture and control image is decoded whole, in threads of which each holds one at a time. Raises ValueError
    where a source is not what its path promises, or nothing is left to train on.
    """
    findings = Findings()
    found = [item for number, source in enumerate(config.all_sources) for item in _found(source, number, findings)]
    kept: list[Item] = []
    for number, (item, seen) in enumerate(_looks(found, config.smallest), 1):
        findings.add(seen)
        kept += [_captioned(item, config, findings)] if item else []
        if progress is not None:
            progress(number, len(found))
    _compare(kept, findings)
    return kept, _report(config, kept, findings)


def _looks(items: list[Item], smallest: int) -> Iterator[tuple[Item | None, Findings]]:
    """What `_examined` says of each, in order. A picture's pixels are gone when the next one is opened."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        for first in range(0, len(items), QUEUE):  # as many wait at a time, not all of a large set
            yield from pool.map(partial(_examined, smallest=smallest), items[first : first + QUEUE])
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the rest


def _found(source: SourceConfig, number: int, findings: Findings) -> Iterator[Item]:
    """The source's pictures, not opened yet."""
    items = list(_finder(source)(source, findings))
    if not items:
        findings.problem(EMPTY, source.path)
    for item in items:
        yield replace(item, source=number, repeats=source.repeats, weight=source.weight)


def _finder(source: SourceConfig) -> Callable[[SourceConfig, Findings], Iterator[Item]]:
    place = Path(source.path).expanduser()
    if place.is_dir():
        return dataset_items if is_saved(place) else folder_items
    if source.path.lower().endswith((".jsonl", ".csv")):
        return table_items
    if source.path.lower().endswith(".tar"):
        return shard_items
    if place.is_file() and place.suffix != ".parquet":
        raise ValueError(
            f"path = {source.path!r} is one file: name a folder, a table (.jsonl, .csv, .parquet) or a .tar"
        )
    return dataset_items


def _captioned(item: Item, config: DataConfig, findings: Findings) -> Item:
    """With its source's caption if it has none, and the trigger in front of those without it."""
    given = config.all_sources[item.source].caption.strip()
    captions = item.captions or ((given,) if given else ())
    if not captions:
        findings.problem(NO_CAPTION, item.name)
    trigger = config.trigger.strip()
    if not trigger:
        return replace(item, captions=captions)
    known = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    begun = [text if known.search(text) else joined((trigger, text), config.tag_separator) for text in captions]
    return replace(item, captions=tuple(begun) or (trigger,))


def _examined(item: Item, smallest: int) -> tuple[Item | None, Findings]:
    """With its size and the digest of its content; None if it cannot be trained on."""
    seen = Findings()
    try:
        opened, digest = _opened(item.read, item.name)
    except BadPicture as error:
        seen.problem(UNREADABLE, str(error))
        return None, seen
    w, h = opened.image.size
    if min(w, h) < smallest:
        seen.problem(SMALL, f"{item.name}: {w} x {h}")
        return None, seen
    for note in opened.notes:
        seen.note(note, item.name)
    whole = replace(item, digest=digest, size=(w, h))
    return (whole if item.hint is None else _hinted(whole, item.hint, seen)), seen


def _hinted(item: Item, read: Callable[[], bytes], seen: Findings) -> Item | None:
    """With the digest of its control image; None if that is of no use."""
    try:
        hint, digest = _opened(read, f"the hint of {item.name}")
    except BadPicture as error:
        seen.problem(NO_HINT, str(error))
        return None
    if not _same_shape(hint.image.size, item.size):
        seen.problem(HINT_SHAPE, f"{item.name} is {item.size}, its hint {hint.image.size}")
        return None
    return replace(item, hint_digest=digest)


def _opened(read: Callable[[], bytes], name: str) -> tuple[Opened, str]:
    try:
        data = read()
    except Exception as error:  # of the file system, of an archive, of a library of tables
        raise BadPicture(f"{name} cannot be read: {error}") from error
    return open_picture(data, name), digest_of(data)


def _same_shape(one: Size, other: Size) -> bool:
    """Whether both have one aspect, or would but for the rounding of a side to a whole pixel."""
    (a, b), (w, h) = one, other
    return abs(a * h - b * w) <= max(STRETCH * b * w, w, h)


def _compare(items: list[Item], findings: Findings) -> None:
    """What is wrong with pictures taken together."""
    first: dict[str, str] = {}
    for item in items:
        known = first.setdefault(item.digest, item.name)
        if known is not item.name:
            findings.problem(DUPLICATE, f"{item.name} is {known}")
    captions = {item.captions for item in items}
    if len(items) > 1 and len(captions) == 1 and captions != {()}:
        findings.problem(SAME, " | ".join(items[0].captions))


def _report(config: DataConfig, items: list[Item], findings: Findings) -> Report:
    """Raises ValueError if there is nothing to train on."""
    per_source = Counter(item.source for item in items)
    report = Report(
        found=len(items) + findings.left_out() + len(findings.opted_out),
        kept=len(items),
        epoch=sum(item.repeats for item in items),
        sources=tuple((source.path, per_source[number]) for number, source in enumerate(config.all_sources)),
        opted_out=tuple(findings.opted_out),
        problems={kind: tuple(names) for kind, names in findings.problems.items()},
        notes={kind: tuple(names) for kind, names in findings.notes.items()},
    )
    if not items:
        places = ", ".join(source.path for source in config.all_sources)
        reasons = "; ".join(line for line in list(report.lines())[1:])
        raise ValueError(
            f"there is no picture to train on in {places}: looked for {', '.join(PICTURES)} files, rows of "
            f"tables or members of shards, and found {report.found}{f', none of use ({reasons})' if reasons else ''}"
        )
    return report
