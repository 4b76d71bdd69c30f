"""Hostile files and what is said about each: pickles, zip archives, safetensors, and what is no file at all."""

import io
import json
import os
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.ldm.checkpoint.crafted import (
    APPEND,
    BUILD,
    DICT,
    DUP,
    LIST,
    MARK,
    NEWOBJ,
    NONE,
    PERSID,
    POP,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    TUPLE,
    TUPLE0,
    archive,
    called,
    named,
    state,
    tensor,
    text,
)
from tests.ldm.checkpoint.test_errors import HOSTILE, entry, safetensors

BEGIN = b"\x80\x02"
Content = bytes | Callable[[], bytes]  # made on demand where it is large


def made(content: Content) -> bytes:
    return content() if callable(content) else content


def archive_of(*records: tuple[str, bytes], comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as file:
        warnings.simplefilter("ignore")  # of duplicates
        file.comment = comment
        for name, content in records:
            file.writestr(name, content)
    return stream.getvalue()


GOOD = state(w=tensor())
PARTS = (("a/data.pkl", GOOD), ("a/version", b"3\n"), ("a/data/0", bytes(8)))


def patched(content: bytes, offset: int, layout: str, *values: int) -> bytes:
    """The bytes with numbers replaced, counted from the end where the offset is negative."""
    changed = bytearray(content)
    struct.pack_into(layout, changed, offset % len(changed), *values)
    return bytes(changed)


def in_directory(name: str, offset: int, layout: str, *values: int) -> bytes:
    """A good archive whose directory lies about one of its records."""
    content = archive_of(*PARTS)
    return patched(content, content.rindex(b"a/" + name.encode()) - 46 + offset, layout, *values)


def overlapping() -> bytes:
    """The record data/1 lies, header and all, inside of data/0."""
    inner = zipfile.ZipInfo("a/data/1")
    inner.file_size = inner.compress_size = 8
    inner.CRC = 0
    header = inner.FileHeader()
    outer = header + bytes(8) + bytes(-(len(header) + 8) % 4)
    stream = io.BytesIO()
    pickle = state(v=tensor(key="1"), w=tensor(numel=len(outer) // 4))
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a/data.pkl", pickle)
        file.writestr("a/data/0", outer)
        inner.header_offset = file.getinfo("a/data/0").header_offset + 30 + len("a/data/0")
        file.filelist.append(inner)
        file._didModify = True  # type: ignore[attr-defined]
    return stream.getvalue()


def nested(levels: int, inner: bytes, open_: bytes, close: bytes) -> bytes:
    return open_ * levels + inner + close * levels


def doubled(levels: int) -> bytes:
    """{a: x, b: x} of {a: x, b: x} of ...: 2^levels tensors in a few bytes."""
    value = tensor()
    for _ in range(levels):
        value += b"q\0" + POP + DICT + MARK + text("a") + b"h\0" + text("b") + b"h\0" + SETITEMS
    return value


def copied_often(call: str) -> bytes:
    """One list of pairs, made into new objects again and again."""
    pair = text("k") + NONE + b"\x86"
    pairs = LIST + b"q\1" + MARK + pair * 100 + b"e" + MARK + b"h\1" * 9000 + TUPLE + POP
    again = named(call) + b"q\2" + POP + LIST + MARK + (b"h\2" + MARK + b"h\1" + TUPLE + REDUCE) * 100_000 + b"e"
    return BEGIN + DICT + text("w") + tensor() + SETITEM + pairs + POP + again + POP + STOP


PAYLOAD = text("touch /tmp/ldm-was-here")
OUTSIDE = "a storage|reaches past|no sizes|that is none"
PICKLES: dict[str, tuple[Content, str]] = {
    "os.system": (state(w=tensor(), x=called("os.system", PAYLOAD)), "posix|os.system"),
    "os.system of protocol 4": (
        b"\x80\x04" + text("os") + text("system") + b"\x93" + PAYLOAD + b"\x85" + REDUCE + STOP,
        "'os.system'",
    ),
    "eval as a class": (
        BEGIN + named("builtins.eval") + PAYLOAD + b"\x85" + NEWOBJ + STOP,
        "'builtins.eval'",
    ),
    "state of a module": (
        BEGIN + named("torch.nn.Module") + TUPLE0 + NEWOBJ + state(w=tensor())[2:-1] + BUILD + STOP,
        "'torch.nn.Module'",
    ),
    "getattr": (state(x=called("builtins.getattr", named("os.path"), text("x"))), "builtins.getattr"),
    "a name with lines": (BEGIN + b"cos\nsystem\x00\n" + STOP, "system"),
    "an endless name": (BEGIN + b"c" + b"a" * 10_000_000, "endless name"),
    "a call of text": (BEGIN + text("os.system") + MARK + TUPLE + REDUCE + STOP, "calls what is no function"),
    "a call of a tensor": (BEGIN + tensor() + TUPLE0 + REDUCE + STOP, "calls what is no function"),
    "state of text": (BEGIN + text("x") + NONE + BUILD + STOP, "changes what is no object"),
    "storage beyond its record": (state(w=tensor((4,), numel=4)), "needs a storage of 16 bytes.* has 8"),
    "storage short of its record": (state(w=tensor((1,), numel=1)), "needs a storage of 4 bytes.* has 8"),
    "storage without record": (state(w=tensor(key="1")), "record is missing"),
    "storage of another name": (state(w=tensor(key="../../data/0")), "record is missing"),
    "storage of 10^12": (state(w=tensor((10**12,), numel=10**12)), OUTSIDE),
    "a negative storage": (state(w=tensor((0,), numel=-2)), "storage of an unknown kind"),
    "storage of no type": (state(w=tensor(kind="torch.Tensor")), "storage of an unknown kind"),
    "10^12 elements by stride 0": (state(w=tensor((10**6, 10**6), (0, 0))), OUTSIDE),
    "3 elements by stride 0": (state(w=tensor((3,), (0,))), OUTSIDE),
    "a huge and empty tensor": (state(w=tensor((0, 2**40), (1, 1))), OUTSIDE),
    "an offset past the end": (state(w=tensor((1,), offset=2)), OUTSIDE),
    "a negative offset": (state(w=tensor((1,), offset=-1)), OUTSIDE),
    "a stride past the end": (state(w=tensor((2,), (2,))), OUTSIDE),
    "a negative stride": (state(w=tensor((2,), (-1,), offset=1)), OUTSIDE),
    "a negative side": (state(w=tensor((-2, -1), (1, 1))), OUTSIDE),
    "overflowing sides": (state(w=tensor((2**32, 2**32), (1, 1))), OUTSIDE),
    "an overflowing stride": (state(w=tensor((2,), (2**64,))), OUTSIDE),
    "more sides than strides": (state(w=tensor((1, 1), (1,))), OUTSIDE),
    "a hundred sides": (state(w=tensor((1,) * 100, (1,) * 100)), OUTSIDE),
    "a tensor of text": (state(w=called("torch._utils._rebuild_tensor_v2", *[text("x")] * 6)), OUTSIDE),
    "a tensor of nothing": (state(w=called("torch._utils._rebuild_tensor_v2")), "makes no sense"),
    "doubling dicts": (BEGIN + doubled(60) + STOP, "beyond measure"),
    "a dict in itself": (BEGIN + DICT + b"q\0" + text("a") + b"h\0" + SETITEM + STOP, "beyond measure"),
    "a state_dict in itself": (BEGIN + DICT + b"q\0" + text("state_dict") + b"h\0" + SETITEM + STOP, "32 times"),
    "60,000 names of one tensor": (
        BEGIN
        + tensor()
        + b"q\0"
        + POP
        + DICT
        + MARK
        + b"".join(text(f"n{i}") + b"h\0" for i in range(60_000))
        + SETITEMS
        + STOP,
        "beyond measure",
    ),
    "two tensors of one name": (
        state(**{"a.b": tensor(), "a": DICT + text("b") + tensor() + SETITEM}),
        "two tensors are called 'a.b'",
    ),
    "copied OrderedDicts": (copied_often("collections.OrderedDict"), "1,000,000 steps"),
    "1 M nested lists": (BEGIN + nested(10**6, NONE, LIST, APPEND) + STOP, "1,000,000 steps"),
    "1 M nested marks": (BEGIN + MARK * 10**6, "1,000,000 steps|makes no sense"),
    "1,000 nested dicts": (BEGIN + nested(1000, tensor(), DICT + text("a"), SETITEM) + STOP, "beyond measure"),
    "a number of 2 GB": (BEGIN + b"\x8b" + struct.pack("<i", 2**31 - 1), "number of 2,147,483,647 bytes"),
    "a number of -1 bytes": (BEGIN + b"\x8b" + struct.pack("<i", -1), "number of -1 bytes"),
    "text of 4 GB": (BEGIN + b"X" + struct.pack("<I", 2**32 - 1), "claims 4,294,967,295 bytes"),
    "text of 2^63": (BEGIN + b"\x8d" + struct.pack("<Q", 2**63), "claims"),
    "bytes of 2^64": (BEGIN + b"\x8e" + struct.pack("<Q", 2**64 - 1), "claims"),
    "33 MB": (lambda: state(w=tensor(), x=text("x" * 33 * 2**20)), "bytes where 33,554,432"),
    "no end": (GOOD[:-1], "makes no sense"),
    "more after its end": (GOOD + GOOD, "does not end"),
    "an unknown memo": (BEGIN + b"h\7" + STOP, "makes no sense"),
    "an empty stack": (BEGIN + TUPLE + STOP, "makes no sense"),
    "a bare stop": (BEGIN + STOP, "does not end"),
    "persistent text": (BEGIN + text("0") + PERSID + STOP, "unknown kind"),
    "odd items": (BEGIN + DICT + MARK + text("a") + SETITEMS + STOP, "sets items"),
    "nothing": (b"", "makes no sense"),
}
PICKLES |= {
    f"instruction {code!r}": (BEGIN + code + b"os\nsystem\n" + STOP, "instruction that torch.save does not write")
    for code in (b"i", b"o", b"P", b"\x82", b"\x84", b"\x96", b"\x97", b"I", b"S", b"F", b"g")
}
ARCHIVES: dict[str, tuple[Content, str]] = {
    "deflate bomb": (
        lambda: archive(
            state(w=tensor((2**24,), numel=2**24)), {"data/0": bytes(2**26)}, compression=zipfile.ZIP_DEFLATED
        ),
        "compressed",
    ),
    "deflated pickle": (archive(GOOD, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "deflated in the directory alone": (in_directory("data/0", 10, "<H", 8), "compressed"),
    "deflated in the record alone": (patched(archive_of(*PARTS), 8, "<H", 8), "not where the directory says"),
    "encrypted": (in_directory("data/0", 8, "<H", 1), "encrypted"),
    "two sizes": (in_directory("data/0", 24, "<I", 4), "two sizes"),
    "past the end": (in_directory("data/0", 20, "<2I", 4096, 4096), "not where|past the end"),
    "start past the end": (in_directory("data/0", 42, "<I", 2**31), "ends inside|not where"),
    "another record's start": (in_directory("data/0", 42, "<I", 0), "not where the directory says"),
    "zip64 without numbers": (in_directory("data/0", 20, "<2I", 2**32 - 1, 2**32 - 1), "lacks its size"),
    "another disk": (in_directory("data/0", 34, "<H", 1), "directory is broken"),
    "overlap": (overlapping(), "lies in another record"),
    "duplicates": (archive_of(*PARTS, ("a/data.pkl", GOOD)), "two records are called"),
    "duplicate storages": (archive_of(*PARTS, PARTS[2]), "two records are called"),
    "two roots": (archive_of(*PARTS, ("b/data/1", b"")), "no data.pkl in one folder"),
    "no pickle": (archive_of(*PARTS[1:]), "no data.pkl in one folder"),
    "an extra record": (archive_of(*PARTS, ("a/evil.py", b"")), "holds 'evil.py'"),
    "a way out": (archive_of(*PARTS, ("a/../x", b"")), r"holds '\.\./x'"),
    "a folder": (archive_of(*PARTS, ("a/", b"")), "holds ''"),
    "other digits": (archive_of(*PARTS, ("a/data/١", b"")), "holds 'data/١'"),
    "a comment": (archive_of(*PARTS, comment=b"hello"), "truncated"),
    "truncated": (archive_of(*PARTS)[:-30], "truncated"),
    "bytes after it": (archive_of(*PARTS) + b"x", "truncated"),
    "60,001 records": (lambda: archive_of(*PARTS, *((f"a/data/{i}", b"") for i in range(1, 60_001))), "60,003 records"),
    "more records than listed": (patched(archive_of(*PARTS), -14, "<2H", 2, 2), "fewer records"),
    "fewer records than listed": (patched(archive_of(*PARTS), -14, "<2H", 4, 4), "ends inside a record"),
    "a directory of 4 GB": (patched(archive_of(*PARTS), -10, "<I", 2**32 - 1), "not where it should be"),
    "only an end": (b"PK\3\4" + bytes(100) + archive_of(), "not where it should be"),
}
SAFETENSORS: dict[str, tuple[Content, str]] = {name: (content, "") for name, content in HOSTILE.items()} | {
    "duplicate metadata": (safetensors(b'{"__metadata__":{"a":"1","a":"2"}}'), "describes something twice"),
    "metadata of numbers": (safetensors(b'{"__metadata__":{"a":1}}'), "damaged or not a safetensors"),
    "metadata of 600,000 words": (
        lambda: safetensors(json.dumps({"__metadata__": {f"k{i}": "" for i in range(600_000)}}).encode()),
        "1,000,000 words",
    ),
    "a shape of 3 M sides": (
        lambda: safetensors(json.dumps({"a": entry(0, 4, [1] * 3_000_000)}).encode().replace(b" ", b""), bytes(4)),
        "1,000,000 words",
    ),
    "a shape of 10^20": (safetensors(json.dumps({"a": entry(0, 0, [0, 10**20])}).encode()), "damaged"),
    "overflowing and empty": (safetensors(json.dumps({"a": entry(0, 0, [0, 2**31, 2**31, 2**31])}).encode()), ""),
    "200,000 tensors": (
        lambda: safetensors(json.dumps({f"t{i}": entry(0, 0, [0]) for i in range(200_000)}).encode()),
        "50,000 tensors",
    ),
}


def sparse(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", size) + b"{")
        os.truncate(path, size + 8)

    return write


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "header of 99 MB": (sparse(99 * 10**6), "over 26,214,400"),
    "header of 101 MB": (sparse(101 * 10**6), "over 26,214,400"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a folder": (Path.mkdir, "not a regular file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "an empty file": (Path.touch, "truncated"),
    "legacy": (
        lambda path: torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False),
        "before version 1.6",
    ),
}
COLLIDING = b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + NONE for i in range(1, 90_000))
HARMLESS = {
    "memo index 2^30": BEGIN + NONE + b"r" + struct.pack("<I", 2**30) + POP + GOOD[2:],
    "400,000 nested lists": state(w=tensor(), x=nested(400_000, NONE, LIST, APPEND)),
    "400,000 nested tuples": state(w=tensor(), x=NONE + b"\x85" * 400_000),
    "nested tuples as key": state(w=tensor(), x=DICT + NONE + b"\x85" * 400_000 + NONE + SETITEM),
    "doubling tuples": state(w=tensor(), x=NONE + (DUP + b"\x86") * 300_000),
    "keys of one hash": state(w=tensor(), x=DICT + MARK + COLLIDING + SETITEMS),
    "set of lists": state(w=tensor(), x=called("builtins.set", LIST + MARK + LIST * 9 + b"e")),
    "a friend's name": state(w=tensor(), x=called("pytorch_lightning.os.system", PAYLOAD)),
    "a memo'd text of 1 MB as many scalars": state(
        w=tensor(), x=text("x" * 2**20) + b"q\5", **{f"k{i}": b"h\5" for i in range(20_000)}
    ),
}
