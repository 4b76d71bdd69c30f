"""A folder of pictures, or a table that names them: where each picture's caption and control image are."""

import os
from collections.abc import Iterator
from pathlib import Path

from configs.finetuning import SourceConfig
from ldm.data.pictures.files import OPTOUT, Hints, OptOuts, is_picture, text_of, walk
from ldm.data.pictures.item import Item
from ldm.data.pictures.readers import FileBytes
from ldm.data.pictures.report import NO_HINT, UNLISTED, Findings
from ldm.data.pictures.table import NAMES, Listed, listed


def folder_items(source: SourceConfig, findings: Findings) -> Iterator[Item]:
    """Pictures anywhere in a folder, in the order of their paths.

    A `metadata.jsonl` or `.csv` speaks for its own folder and those within: what it does not name is left out. Else
    captions lie beside the pictures, in `.txt` or `.caption`. `optout.txt` names pictures not to be used.
    """
    root = Path(source.path).expanduser()
    hints = Hints(source.hints) if source.hints else None
    apart = hints.root.resolve() if hints and hints.root.resolve() != root.resolve() else None
    files = [file for file in walk(root) if apart is None or not file.resolve().is_relative_to(apart)]
    optouts = OptOuts(file for file in files if file.name == OPTOUT)
    tables = [file for file in files if file.name in NAMES]
    told = [one for table in tables for one in listed(table, source, findings)]
    alone = _unlisted(files, tables, told, findings)
    beside = [Listed(path, text_of(path, findings), None, False, False) for path in alone]
    for one in sorted(told + beside, key=lambda one: one.path.as_posix()):
        yield from _item(one, root, hints, optouts, findings)
    optouts.tell_unmet(findings)


def table_items(source: SourceConfig, findings: Findings) -> Iterator[Item]:
    """The pictures of a `.jsonl` or `.csv`, in its order; without those of an `optout.txt` in its folder."""
    file = Path(source.path).expanduser()
    hints = Hints(source.hints) if source.hints else None
    wishes = file.parent / OPTOUT
    optouts = OptOuts([wishes] if wishes.is_file() else [])
    for one in listed(file, source, findings):
        yield from _item(one, file.parent, hints, optouts, findings)
    optouts.tell_unmet(findings)


def _item(one: Listed, root: Path, hints: Hints | None, optouts: OptOuts, findings: Findings) -> Iterator[Item]:
    """The picture, unless its owner opted out or its control image is not there."""
    name, path = str(one.path), one.path
    if path in optouts or one.refused:
        findings.opted_out.append(name)
        return
    hint = hints.find(os.path.relpath(path, root)) if hints else one.hint
    if (hints or one.hinted) and (hint is None or not hint.is_file()):
        findings.problem(NO_HINT, f"{name}: {hint or f'none of its name in {hints.root}' if hints else 'none named'}")
        return
    yield Item(name, one.captions, FileBytes(name), hint=FileBytes(str(hint)) if hint else None)


def _unlisted(files: list[Path], tables: list[Path], told: list[Listed], findings: Findings) -> Iterator[Path]:
    """Pictures outside every table's folder; those inside that no table names are problems."""
    known = {os.path.abspath(path) for one in told for path in (one.path, one.hint) if path}
    for path in files:
        if not is_picture(path.name):
            continue
        if not any(path.is_relative_to(table.parent) for table in tables):
            yield path
        elif os.path.abspath(path) not in known:
            findings.problem(UNLISTED, str(path))
