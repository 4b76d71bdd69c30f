"""How files and folders are written: beside their place, whole or not at all; weights always as safetensors."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

HASH_KEY = "modelspec.hash_sha256"  # of all bytes behind the header, with 0x before it
_NO_HASH = "0x" + 64 * "0"


@contextmanager
def placed(target: Path, *, overwrite: bool, folder: bool = False) -> Iterator[Path]:
    """A path to write a file, or folder, at, which takes its place at `target` when the block has ended well.

    Folders above it are made. Raises FileExistsError where something is already: unless `overwrite`, or for an empty
    folder; and always where a folder would take the place of a file or a file that of a folder.
    """
    _require_free(target, overwrite, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:100]}.", dir=target.parent) as beside:
        new = Path(beside) / "new"
        yield new
        _require_free(target, overwrite, folder)  # also after the hour that writing took
        if folder:
            _swap(new, target, Path(beside) / "old")
        else:
            os.replace(new, target)


def _require_free(target: Path, overwrite: bool, folder: bool) -> None:
    taken = any(target.iterdir()) if folder and target.is_dir() else target.exists()
    if taken and not (overwrite and target.is_dir() == folder):
        remedy = "choose another name"
        if target.is_dir() == folder:
            remedy = f"pass overwrite=True (--overwrite) to replace it, or {remedy}"
        raise FileExistsError(f"{target} exists already; {remedy}")


def _swap(new: Path, target: Path, old: Path) -> None:
    """Puts `new` in the place of `target`, or leaves everything as it was."""
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(old, target)
        raise


def require_safetensors(path: str | Path) -> Path:
    """The path of a file to write weights to. Raises ValueError for a name that is not that of a safetensors file."""
    target = Path(path).expanduser()
    if target.suffix != ".safetensors":
        name = f"{target.stem or 'model'}.safetensors"
        raise ValueError(f"weights are written as safetensors only, since a pickle can run code: name it {name}")
    return target


def write_tensors(
    tensors: Mapping[str, Tensor],
    file: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """One safetensors file, readable by whoever the system lets read new files.

    dtype: what numbers with a fraction are converted to; None leaves each as it is. metadata: beside "format"; what it
    says under HASH_KEY is replaced by the hash of what is written.

    Raises ValueError for a weight that is too large for the dtype, OSError when the file cannot be written.
    """
    notes = {"format": "pt", **(metadata or {})}
    notes |= {HASH_KEY: _NO_HASH} if HASH_KEY in notes else {}
    whole = _apart({name: converted(name, tensor, dtype) for name, tensor in tensors.items()})
    try:
        save_file(whole, file, metadata=notes)
    except SafetensorError as error:
        raise OSError(f"the weights cannot be written: {error}") from None
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)  # safetensors lets nobody but the owner read
    if HASH_KEY in notes:
        _write_hash(file)


def converted(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor as files hold it. Raises ValueError for a weight that is too large for the dtype."""
    tensor = tensor.detach().to("cpu")
    new = tensor.to(dtype if tensor.is_floating_point() else None).contiguous()
    if new.dtype != tensor.dtype and new.isinf().any() and not tensor.isinf().any():
        raise ValueError(f"{name} has weights up to {tensor.abs().max():.3g}, too large for {dtype}: choose another")
    return new


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that begin inside of others copied: safetensors refuses to write the same memory twice."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end and tensor.numel():
            tensors[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return tensors


def _write_hash(file: Path) -> None:
    with file.open("r+b") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        before = f'"{HASH_KEY}":"'.encode()
        assert before + _NO_HASH.encode() in header, "safetensors writes its header without blanks"
        stream.seek(8)
        stream.write(header.replace(before + _NO_HASH.encode(), before + b"0x" + digest.encode()))
