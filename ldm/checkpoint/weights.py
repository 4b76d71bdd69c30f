"""Moves weights from safetensors files into a module built on `meta`: checked first, then mapped, never held twice."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldm.checkpoint.files import listed, require_regular

MAX_HEADER = 25 * 2**20
MAX_TENSORS = 50_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Canonical = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, before anything of it is read."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def read_headers(files: Sequence[Path]) -> dict[str, Entry]:
    """Names, dtypes and shapes in safetensors files. Raises ValueError naming the file that cannot be read."""
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in entries:
                raise ValueError(f"{name} is both in {entries[name].file} and in {file}; remove the shard left over")
            entries[name] = entry
    return entries


def _read_header(file: Path) -> dict[str, Entry]:
    _refuse_hostile_header(file)
    with _opened(file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        return {name: Entry(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        size = file.stat().st_size
        raise ValueError(
            f"{file} ({size:,} bytes) is damaged or not a safetensors file ({error}); fetch it again"
        ) from None


def _refuse_hostile_header(file: Path) -> None:
    """What safetensors itself does not refuse: pipes, headers of 99 MB, hundreds of thousands of empty tensors."""
    require_regular(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size or size < 8:
            raise ValueError(
                f"{file} is truncated or not a safetensors file: it has {size:,} bytes and its header alone claims "
                f"{8 + length:,}; fetch it again"
            )
        if length > MAX_HEADER:
            raise ValueError(f"{file} has a header of {length:,} bytes, more than {MAX_HEADER:,}; not a known model")
        if stream.read(length).count(b"[") > 2 * MAX_TENSORS:  # shape and offsets of each: lists in any spelling
            raise ValueError(f"{file} claims more than {MAX_TENSORS:,} tensors; not a known model")


def main_dtype(entries: Mapping[str, Entry]) -> torch.dtype:
    """The floating-point dtype that most of the weights have."""
    counts = Counter[str]()
    for entry in entries.values():
        counts[entry.dtype] += entry.numel
    known = [dtype for dtype, _ in counts.most_common() if dtype in DTYPES]
    if not known:
        raise ValueError(f"the weights are stored as {listed(sorted(counts))}; read are {listed(sorted(DTYPES))}")
    return DTYPES[known[0]]


def load_weights(module: nn.Module, entries: Mapping[str, Entry], dtype: torch.dtype, canonical: Canonical) -> None:
    """Fills a module that was built on `meta`, strictly.

    `canonical` turns an old spelling of the state dict into the module's own; a name it drops is ignored. Tensors that
    already have the dtype stay views of the memory-mapped file; the others are converted one at a time.

    Raises ValueError listing missing and unexpected names, wrong shapes and unreadable dtypes, before weights are read.
    """
    where = next(iter(entries.values())).file.parent if entries else Path()
    on_meta = {name: torch.empty(entry.shape, device="meta") for name, entry in entries.items()}
    own_names = {name: list(canonical({name: tensor})) for name, tensor in on_meta.items()}
    if clashes := [name for name, n in Counter(new for news in own_names.values() for new in news).items() if n > 1]:
        raise ValueError(f"{where} holds {listed(clashes)} in two spellings; remove one")
    check(module, canonical(on_meta), where)
    kept = {name: entry for name, entry in entries.items() if own_names[name]}
    if strange := {entry.dtype for entry in kept.values()} - set(DTYPES):
        raise ValueError(f"{where} stores weights as {listed(sorted(strange))}; read are {listed(sorted(DTYPES))}")
    state: dict[str, Tensor] = {}
    for name, tensor in _tensors(kept):
        state |= {new: value.to(dtype) for new, value in canonical({name: tensor}).items()}
    module.load_state_dict(state, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    module.eval()


def check(module: nn.Module, found: Mapping[str, Tensor], where: Path) -> None:
    """Raises ValueError, in one message, for every difference in names or shapes."""
    expected = module.state_dict()
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} (file {tuple(found[name].shape)}, expected {tuple(tensor.shape)})"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems = {"missing keys": missing, "unexpected keys": unexpected, "wrong shapes": shapes}
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names)
        raise ValueError(f"the weights in {where} do not fit the config.json beside them: {text}")


def _tensors(entries: Mapping[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """Tensors as views of mapped files. A sixteenth of a file at a time, so that pages already converted are freed."""
    for names in _portions(entries):
        with _opened(entries[names[0]].file) as opened:
            for name in names:
                yield name, opened.get_tensor(name)


def _portions(entries: Mapping[str, Entry]) -> Iterator[list[str]]:
    files = {entry.file for entry in entries.values()}
    for file in sorted(files):
        names = [name for name, entry in entries.items() if entry.file == file]
        limit, portion, size = max(16 * 2**20, file.stat().st_size // 16), [], 0
        for name in names:
            portion.append(name)
            size += entries[name].numel * DTYPES[entries[name].dtype].itemsize
            if size > limit:
                yield portion
                portion, size = [], 0
        if portion:
            yield portion
