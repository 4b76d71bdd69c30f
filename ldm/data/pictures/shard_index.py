"""What lies where in a tar archive, so that its members are read by position and nothing is unpacked.

Made once for each archive, here or elsewhere, and kept in the user's cache folder under what tells its version.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from ldm.data.pictures.files import hidden
from ldm.data.pictures.readers import remote

TEXTS = (".txt", ".caption", ".json")
LONGEST = 1 << 20  # bytes of a member that is taken for a text


@dataclass(frozen=True)
class Index:
    """members: (name, first byte, length) of files in their order. texts: contents of small text members.

    damage: why it ends before the archive does, "" for a whole one.
    """

    members: tuple[tuple[str, int, int], ...]
    texts: dict[str, str]
    damage: str


def index_of(path: str) -> Index:
    """The index of a `.tar`, at a path or an address. ValueError if it cannot be read, or is compressed."""
    try:
        version = _version(path)
        note = _folder() / f"{blake2b(version.encode(), digest_size=16).hexdigest()}.json"
        known = _read(note)
        if known is None:
            with _opened(path) as file:
                known = _made(file)
            if not known.damage:
                _write(note, known)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"{path} cannot be read as a plain .tar (unpack .tar.gz to .tar): {error}") from error
    return known


def _made(file: IO[bytes]) -> Index:
    members: list[tuple[str, int, int]] = []
    texts: dict[str, str] = {}
    damage = ""
    archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  (the caller's file)
    try:
        for member in archive:
            name = member.name.removeprefix("./")
            if not member.isreg() or any(map(hidden, name.split("/"))):
                continue
            members.append((name, member.offset_data, member.size))
            if name.lower().endswith(TEXTS) and member.size <= LONGEST:
                content = archive.extractfile(member)
                assert content is not None  # of a regular file
                texts[name] = content.read().decode("utf-8-sig", errors="replace")
    except (tarfile.TarError, OSError) as error:
        damage = str(error)
    return Index(tuple(members), texts, damage)


def _version(path: str) -> str:
    """Changes with the archive's content."""
    if "://" in path:
        system, inner = remote(path)
        return f"{path} {system.ukey(inner)} {system.size(inner)}"
    state = os.stat(path)
    return f"{os.path.abspath(path)} {state.st_size} {state.st_mtime_ns}"


def _opened(path: str) -> IO[bytes]:
    if "://" not in path:
        return open(path, "rb")
    system, inner = remote(path)
    file: IO[bytes] = system.open(inner, "rb")
    return file


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "ldm-pipelines" / "shards"


def _read(note: Path) -> Index | None:
    try:
        told: Any = json.loads(note.read_text(encoding="utf-8"))
        members = tuple((str(name), int(start), int(length)) for name, start, length in told["members"])
        return Index(members, dict(told["texts"]), "")
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that a full disk cut short
        return None


def _write(note: Path, index: Index) -> None:
    draft = note.with_name(f"{note.name}.{os.getpid()}.part")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(asdict(index)), encoding="utf-8")
        draft.replace(note)
    except OSError:  # it is made anew next time
        draft.unlink(missing_ok=True)


def braces(pattern: str) -> Iterator[str]:
    """`a{00..02}.tar` or `a{x,y}.tar` -> each of the names, as a shell would."""
    before, opened, rest = pattern.partition("{")
    choice, closed, after = rest.partition("}")
    if not (opened and closed):
        yield pattern
        return
    low, dots, high = choice.partition("..")
    if dots and low.isdecimal() and high.isdecimal():
        choices = [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
    else:
        choices = choice.split(",")
    for one in choices:
        yield from (before + one + tail for tail in braces(after))
