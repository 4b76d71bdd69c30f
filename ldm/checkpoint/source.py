"""One file of weights, whatever its format: what is in it before anything is read, then each tensor as a view.

The format is decided by content, never by extension. safetensors go through their own library, after checks of what it
lets pass; pickles through `ldm.checkpoint.unpickle`, which runs nothing. What is in safetensors is told without torch.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import MAX_CLAIM, MAX_SIDES, MAX_TENSORS, listed, require_regular

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 25 * 2**20  # bytes
MAX_WORDS = 20 * MAX_TENSORS  # strings and numbers of a header, each of which takes a hundred times its bytes to hold
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights are read from
WINDOW = 16 * 2**20  # bytes

Reader = Callable[[str], "Tensor"]


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, before anything of it is read. `dtype` is spelled as in safetensors: F16, BF16, I64."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Source:
    """An opened file of weights.

    entries: by name. Nested dicts of a pickle are joined with "."; a bare tensor is named "".
    metadata: `__metadata__` of safetensors; of a pickle the scalars beside the tensors, such as global_step, as text.
    format: "safetensors", or "torch" for what torch.save wrote.
    globals: the names in a pickle that stand for code, none of which was imported; () for safetensors.
    """

    path: Path
    format: str
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    globals: tuple[str, ...]
    _mapping: "_Mapping" = field(repr=False, compare=False)

    def tensor(self, name: str) -> "Tensor":
        """A tensor as a view of the mapped file (a private mapping: writing to it does not reach the file).

        Raises KeyError for a name that is not in `entries`, CheckpointError when the file changed since it was opened.
        """
        return self._mapping.tensor(name, self.entries[name])


def open_source(path: str | Path, *, allow_unknown_globals: bool = False) -> Source:
    """Reads names, dtypes, shapes and metadata of a safetensors file or of a torch file (.ckpt, .pt, .bin).

    `state_dict` inside a torch file is unwrapped, as often as it is nested.
    allow_unknown_globals: accept a pickle that names classes or functions other than those training programs are known
        to leave in checkpoints. They are never imported or called either way.

    Raises FileNotFoundError, and CheckpointError for every file that is not such a file, damaged or hostile.
    """
    path = Path(path)
    require_regular(path)
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[:4] == b"PK\3\4":
        return _open_pickled(path, allow_unknown_globals)
    _refuse_other_formats(path, head)
    return _open_safetensors(path)


def read_headers(files: Sequence[Path]) -> dict[str, Entry]:
    """Names, dtypes and shapes in files of weights. Raises CheckpointError naming the file that cannot be read."""
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in open_source(file).entries.items():
            if name in entries:
                both = f"both in {entries[name].file} and in {file}"
                raise CheckpointError(f"{listed([name])} is {both}; remove the shard left over")
            entries[name] = entry
    return entries


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """Raises CheckpointError for files that are known to be something else, with what to do about it."""
    if head[:4] == b"GGUF":
        raise CheckpointError(f"{path} is a GGUF file, which is not read; take the safetensors file of this model")
    if head[8:9] == b"{":
        return  # safetensors, whose first bytes are a number and may look like anything
    if head[:1] == b"\x80" or head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path} is in the format torch wrote before version 1.6 (or a pickle of another program), which is not "
            "read: convert it in a program you trust it with, by torch.load(path, weights_only=True) and "
            "safetensors.torch.save_file"
        )
    text = head.lstrip()[:64].lower()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is only a pointer to the file, left by git: run `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not weights: its download wants a log-in; fetch it again")


class _Mapping:
    """Maps a file when a tensor is asked for, and anew after each sixteenth of it.

    A mapping lives as long as any tensor that views it. So the pages of tensors that were converted and dropped are
    freed while the rest is still being read.
    """

    def __init__(self, path: Path, stamp: tuple[int, ...], reopen: Callable[[], Reader]) -> None:
        self._path, self._stamp, self._reopen = path, stamp, reopen
        self._reader: Reader | None = None
        self._given = 0

    def tensor(self, name: str, entry: Entry) -> "Tensor":
        if _stamp(self._path) != self._stamp:
            raise CheckpointError(f"{self._path} changed while it was read; load it again")
        if self._reader is None or self._given > max(WINDOW, self._stamp[0] // 16):
            self._reader, self._given = self._reopen(), 0
        tensor = self._reader(name)
        if tuple(tensor.shape) != entry.shape:
            raise CheckpointError(f"{self._path} changed while it was read; load it again")
        self._given += tensor.nbytes
        return tensor


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev


def _open_pickled(path: Path, allow_unknown_globals: bool) -> Source:
    from ldm.checkpoint.pickled import read_pickled

    stamp = _stamp(path)
    content = read_pickled(path, allow_unknown_globals=allow_unknown_globals)
    entries = {name: Entry(path, view.dtype, view.shape) for name, view in content.views.items()}
    mapping = _Mapping(path, stamp, lambda: content.reader(path))
    return Source(path, "torch", entries, content.metadata, content.globals, mapping)


def _open_safetensors(path: Path) -> Source:
    stamp = _stamp(path)
    header = _checked_header(path)
    with _opened(path, "numpy") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        entries = {name: Entry(path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        metadata = dict(opened.metadata() or {})
    json.loads(header, object_pairs_hook=lambda pairs: _refuse_twins(path, pairs))
    for name, entry in entries.items():
        if len(entry.shape) > MAX_SIDES or math.prod(max(side, 1) for side in entry.shape) > MAX_CLAIM:
            sides = ", ".join(map(str, entry.shape[:MAX_SIDES]))
            raise CheckpointError(f"{path}: {name[:200]!r} claims the shape [{sides}]; not a known model")
    return Source(path, "safetensors", entries, metadata, (), _Mapping(path, stamp, lambda: _safetensors_reader(path)))


def _safetensors_reader(path: Path) -> Reader:
    opened = _opened(path, "pt")

    def read(name: str) -> "Tensor":
        try:
            tensor: Tensor = opened.get_tensor(name)
        except (SafetensorError, RuntimeError, AttributeError) as error:  # a dtype this torch lacks
            raise CheckpointError(f"{path}: {name[:200]!r} cannot be read ({str(error)[:300]})") from None
        return tensor

    return read


def _opened(path: Path, framework: str) -> Any:
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or not a safetensors file ({str(error)[:300]}); "
            "fetch it again"
        ) from None


def _refuse_twins(path: Path, pairs: list[tuple[str, object]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path} is damaged: its header describes something twice; fetch it again")


def _checked_header(path: Path) -> bytes:
    """The header, after a look for what safetensors itself does not refuse: 99 MB, hundreds of thousands of tensors."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size or size < 8:
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file: it has {size:,} bytes and its header alone claims "
                f"{8 + length:,}; fetch it again"
            )
        if length > MAX_HEADER:
            raise CheckpointError(f"{path} has a header of {length:,} bytes, over {MAX_HEADER:,}; not a known model")
        header = stream.read(length)
    if header.count(b"[") > 2 * MAX_TENSORS:  # shape and offsets of each: lists in any spelling
        raise CheckpointError(f"{path} claims more than {MAX_TENSORS:,} tensors; not a known model")
    if max(header.count(b'"'), header.count(b",")) > MAX_WORDS:
        raise CheckpointError(f"{path} has a header of more than {MAX_WORDS:,} words; not a known model")
    return header
