"""Tensors in a torch file (.ckpt, .pt, .bin): where each lies, and readers that view the mapped file."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.archive import Record, read_archive
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import MAX_TENSORS, listed
from ldm.checkpoint.inert import SIZES, Broken, Stub, View, is_familiar
from ldm.checkpoint.unpickle import MAX_PICKLE, unpickle

MAX_DEPTH = 32  # of dicts in dicts
MAX_ITEMS = 250_000  # looked at in search of tensors
MAX_NAME = 500  # letters
MAX_SCALARS = 1000  # kept as metadata, and letters of each
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Pickled:
    """What a torch file holds: tensors by name, the plain scalars beside them, names of code it refers to."""

    views: Mapping[str, View]
    metadata: Mapping[str, str]
    globals: tuple[str, ...]
    records: Mapping[str, Record]

    def reader(self, path: Path) -> Callable[[str], Tensor]:
        """A function from names to tensors, all in one mapping of the file, private to this process."""
        try:
            file = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{path} cannot be mapped ({error}); load it again") from None

        def read(name: str) -> Tensor:
            view = self.views[name]
            return _tensor(file, view, self.records[f"data/{view.storage.key}"])

        return read


def read_pickled(path: Path, *, allow_unknown_globals: bool = False) -> Pickled:
    """Finds the tensors in a zip file of torch.save. Raises CheckpointError for any other file or a hostile one."""
    records = read_archive(path)
    try:
        _refuse_foreign_order(path, records)
        value, names = unpickle(_bytes(path, records["data.pkl"], MAX_PICKLE))
        unknown = [repr(name) for name in names if not is_familiar(name)]
        if unknown and not allow_unknown_globals:
            raise CheckpointError(
                f"{path} refers to code that weights do not need: {listed(unknown)}. None of it was run. If it is a "
                "model, or lends one its VAE or text, and you know where it is from, allow_unknown_globals=True in "
                "from_pretrained and --allow-unknown-globals load its tensors (the code still does not run); of "
                "anything else, fetch a .safetensors file"
            )
        state, metadata = _unwrapped(value)
        views = _by_name(_flat(state))
        _refuse_bad_storages(views, records)
    except Broken as problem:
        raise CheckpointError(f"{path} is damaged or hostile: {problem}; fetch it again") from None
    if not views:
        raise CheckpointError(f"{path} holds no tensors; is it the right file?")
    return Pickled(views, metadata, tuple(names), records)


def _bytes(path: Path, record: Record, limit: int) -> bytes:
    if record.size > limit:
        raise Broken(f"a record of {record.size:,} bytes where {limit:,} are the most")
    with path.open("rb") as stream:
        stream.seek(record.start)
        return stream.read(record.size)


def _refuse_foreign_order(path: Path, records: Mapping[str, Record]) -> None:
    if "byteorder" in records and (order := _bytes(path, records["byteorder"], 16)) != b"little":
        raise Broken(f"its byte order is {order!r}, only little is read")


def _unwrapped(value: Any) -> tuple[Any, dict[str, str]]:
    """The innermost `state_dict`, and the scalars beside it and in it; the outer ones win."""
    metadata: dict[str, str] = {}
    for _ in range(MAX_DEPTH):
        items = _items(value)
        scalars = (item for item in items.items() if isinstance(item[1], (bool, int, float, str)))
        metadata = {key: _text(item) for key, item in islice(scalars, MAX_SCALARS)} | metadata
        if not _items(items.get("state_dict")):
            return value, metadata
        value = items["state_dict"]
    raise Broken(f"its state_dict is nested more than {MAX_DEPTH} times")


def _items(value: Any) -> dict[str, Any]:
    """What a dict or the stub of an object holds; the parameters of a torch.nn.ParameterDict lie in its state."""
    if isinstance(value, Stub):
        parameters = value.state.get("_parameters") if isinstance(value.state, dict) else None
        return value.items | (parameters if isinstance(parameters, dict) else {})
    return value if isinstance(value, dict) else {}


def _text(scalar: bool | int | float | str) -> str:
    return (hex(scalar) if isinstance(scalar, int) and scalar.bit_length() > 64 else str(scalar))[:MAX_SCALARS]


def _flat(value: Any) -> Iterator[tuple[str, View]]:
    """Tensors with their paths through nested dicts, joined by dots. Shared dicts count as often as they are met."""
    todo, looked = [("", value, 0)], 0
    while todo:
        name, value, depth = todo.pop()
        if isinstance(value, View):
            yield name, value
        inside = _items(value)
        looked += 1 + len(inside)
        below = [(key, item) for key, item in inside.items() if isinstance(item, (View, dict, Stub))]
        if looked > MAX_ITEMS or len(todo) + len(below) > MAX_TENSORS or depth > MAX_DEPTH or len(name) > MAX_NAME:
            raise Broken("it nests or repeats its tensors beyond measure")
        todo += [(f"{name}.{key}" if depth else key, item, depth + 1) for key, item in reversed(below)]


def _by_name(found: Iterable[tuple[str, View]]) -> dict[str, View]:
    views: dict[str, View] = {}
    for name, view in found:
        if name in views:
            raise Broken(f"two tensors are called {name[:200]!r}")
        views[name] = view
    return views


def _refuse_bad_storages(views: Mapping[str, View], records: Mapping[str, Record]) -> None:
    for name, view in views.items():
        record = records.get(f"data/{view.storage.key}")
        claimed = view.storage.numel * SIZES[view.dtype]
        if record is None or record.size != claimed:
            held = "is missing" if record is None else f"has {record.size:,}"
            raise Broken(f"{name[:200]!r} needs a storage of {claimed:,} bytes, and its record {held}")


def _tensor(file: Any, view: View, record: Record) -> Tensor:
    if 0 in view.shape:
        return torch.empty(view.shape, dtype=DTYPES[view.dtype])
    storage = file[record.start : record.start + record.size]
    if record.start % SIZES[view.dtype]:
        storage = storage.clone()  # torch expects elements at multiples of their size
    empty = torch.empty(0, dtype=DTYPES[view.dtype])
    return empty.set_(storage, view.offset, view.shape, view.stride)
