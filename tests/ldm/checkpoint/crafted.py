"""Torch files put together byte by byte: what torch.save would never write, and old files that nobody can write now."""

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

DICT, LIST, TUPLE0, MARK, STOP, REDUCE, BUILD, NONE, FALSE = b"}", b"]", b")", b"(", b".", b"R", b"b", b"N", b"\x89"
SETITEM, SETITEMS, APPEND, TUPLE, PERSID, NEWOBJ, DUP, POP = b"s", b"u", b"a", b"t", b"Q", b"\x81", b"2", b"0"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x0c" + value.to_bytes(12, "little", signed=True)


def named(name: str) -> bytes:
    """The instruction that asks for a class or function."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + MARK + b"".join(arguments) + TUPLE + REDUCE


def tuple_of(*values: int) -> bytes:
    return MARK + b"".join(map(number, values)) + TUPLE


def tensor(
    shape: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    *,
    offset: int = 0,
    key: str = "0",
    numel: int = 2,
    kind: str = "torch.FloatStorage",
) -> bytes:
    storage = MARK + text("storage") + named(kind) + text(key) + text("cpu") + number(numel) + TUPLE + PERSID
    hooks = called("collections.OrderedDict")
    sizes = (number(offset), tuple_of(*shape), tuple_of(*stride))
    return called("torch._utils._rebuild_tensor_v2", storage, *sizes, FALSE, hooks)


def state(**values: bytes) -> bytes:
    """A pickle of a dict."""
    return b"\x80\x02" + DICT + MARK + b"".join(text(k) + v for k, v in values.items()) + SETITEMS + STOP


def archive(pickle: bytes, records: Mapping[str, bytes] | None = None, **options: Any) -> bytes:
    """The file around a pickle. `records` are added to `data/0` of eight bytes, or replace it."""
    stream = io.BytesIO()
    root = options.pop("root", "archive")
    contents = {"data.pkl": pickle, "version": b"3\n", "data/0": bytes(8)} | dict(records or {})
    with zipfile.ZipFile(stream, "w", **options) as file:
        for name, content in contents.items():
            file.writestr(f"{root}/{name}", content)
    return stream.getvalue()
