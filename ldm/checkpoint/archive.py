"""The zip container that torch.save writes: where each record lies in the file, everything checked, nothing unpacked.

Our own parser, because two readings of one archive are how hostile files get past checks: duplicate names, a directory
that disagrees with the records, compression. torch writes none of these, so any of them is refused.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ldm.checkpoint.errors import CheckpointError

MAX_DIRECTORY = 16 * 2**20  # bytes
MAX_RECORDS = 60_000
NAMES = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]{1,9}"
)
LOCAL, CENTRAL, END, END64 = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), "<4s4H2IH", "<4sQ2H2I4Q"
ENCRYPTED = 0x2041  # flag bits: encrypted, strongly encrypted, directory encrypted
TOO_LONG = 0xFFFFFFFF  # stands for a number kept in the zip64 field

Refuse = Callable[[str], CheckpointError]


@dataclass(frozen=True)
class Record:
    """The bytes of one record in the file."""

    start: int
    size: int


def read_archive(path: Path) -> dict[str, Record]:
    """The records of a torch file by their names inside its one folder: data.pkl, data/0, data/1, ...

    Raises CheckpointError for a file that is no such archive or differs in any way from what torch writes.
    """

    def refuse(problem: str) -> CheckpointError:
        return CheckpointError(f"{path} is damaged or not a file that torch.save wrote ({problem}); fetch it again")

    with path.open("rb") as stream:
        try:
            size = stream.seek(0, 2)
            count, offset, length = _end_record(stream, size, refuse)
            if count > MAX_RECORDS or length > MAX_DIRECTORY:
                raise refuse(f"{count:,} records in a directory of {length:,} bytes")
            stream.seek(offset)
            listed = _directory(stream.read(length), count, refuse)
            records = {name: _located(stream, name, record, offset, refuse) for name, record in listed.items()}
        except struct.error:
            raise refuse("it ends inside a record") from None
    _refuse_overlaps(records, refuse)
    return _without_root(records, refuse)


def _end_record(stream: BinaryIO, size: int, refuse: Refuse) -> tuple[int, int, int]:
    """Number of records, start and length of the directory, which must be followed by its end records and no more."""
    stream.seek(max(size - 22, 0))
    magic, disk, start, here, count, length, offset, comment = struct.unpack(END, stream.read(22))
    if magic != b"PK\5\6" or comment:
        raise refuse("its directory is missing: it is truncated")
    stream.seek(max(size - 98, 0))
    end = size - 22
    if size >= 98 and (tail := stream.read(76))[56:60] == b"PK\6\7":
        magic, _, _, _, disk, start, here, count, length, offset = struct.unpack(END64, tail[:56])
        end = size - 98
        if magic != b"PK\6\6" or struct.unpack("<4sIQI", tail[56:])[1:] != (0, end, 1):
            raise refuse("its end records disagree")
    if disk or start or here != count or offset + length != end:
        raise refuse("its directory is not where it should be")
    return count, offset, length


def _directory(data: bytes, count: int, refuse: Refuse) -> dict[str, Record]:
    """Names with the starts of their local headers (not of their bytes yet) and sizes, from the central directory."""
    found: dict[str, Record] = {}
    at = 0
    for _ in range(count):
        magic, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, comment_size, disk, _, _, start = (
            CENTRAL.unpack_from(data, at)
        )
        at += CENTRAL.size
        raw, extra = data[at : at + name_size], data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if magic != b"PK\1\2" or at > len(data) or disk:
            raise refuse("its directory is broken")
        name = raw.decode("utf-8", "replace")
        if name in found:
            raise refuse(f"two records are called {name[:200]!r}")
        if "/code/" in name:
            raise refuse("it is a TorchScript program; look for the weights alone")
        if flags & ENCRYPTED or method:
            raise refuse(f"{name[:200]!r} is encrypted or compressed, which torch never does")
        size, packed, start = _zip64(extra, [size, packed, start], refuse)
        if packed != size:
            raise refuse(f"{name[:200]!r} has two sizes")
        found[name] = Record(start, size)
    if at != len(data):
        raise refuse("its directory lists fewer records than it holds")
    return found


def _zip64(extra: bytes, values: list[int], refuse: Refuse) -> list[int]:
    """The same values, those too long for 32 bits taken from the zip64 field in the order of the format."""
    if TOO_LONG not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            long = iter(struct.unpack_from(f"<{min(length, 24) // 8}Q", extra, at + 4))
            return [next(long, value) if value == TOO_LONG else value for value in values]
        at += 4 + length
    raise refuse("a record lacks its size")


def _located(stream: BinaryIO, name: str, listed: Record, end: int, refuse: Refuse) -> Record:
    """The record itself: past its local header, which must agree, and before the directory."""
    stream.seek(min(listed.start, end))
    magic, _, flags, method, _, _, _, packed, size, name_size, extra_size = LOCAL.unpack(stream.read(LOCAL.size))
    same_size = flags & 8 or TOO_LONG in (packed, size) or (packed == size == listed.size)
    if magic != b"PK\3\4" or flags & ENCRYPTED or method or stream.read(name_size) != name.encode() or not same_size:
        raise refuse(f"{name[:200]!r} is not where the directory says")
    start = listed.start + LOCAL.size + name_size + extra_size
    if start + listed.size > end:
        raise refuse(f"{name[:200]!r} reaches past the end of the records")
    return Record(start, listed.size)


def _refuse_overlaps(records: dict[str, Record], refuse: Refuse) -> None:
    end = 0
    for name, record in sorted(records.items(), key=lambda item: (item[1].start, item[1].size)):
        if record.start < end:
            raise refuse(f"{name[:200]!r} lies in another record")
        end = record.start + record.size


def _without_root(records: dict[str, Record], refuse: Refuse) -> dict[str, Record]:
    """The records by their names inside the archive's folder. There is one, and in it only what torch writes."""
    roots = {name.partition("/")[0] for name in records}
    inner = {name.partition("/")[2]: record for name, record in records.items()}
    if len(roots) != 1 or "data.pkl" not in inner:
        raise refuse("no data.pkl in one folder; an ordinary zip archive must be unpacked first")
    if strange := [name for name in inner if not NAMES.fullmatch(name)]:
        raise refuse(f"it holds {strange[0][:200]!r}")
    return inner
