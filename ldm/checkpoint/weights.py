"""Moves weights from files into a module built on `meta`: checked first, then mapped, never held twice."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint import pickled
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.files import listed
from ldm.checkpoint.source import FLOATS, Entry, open_source
from vae import Autoencoder

DTYPES = {name: pickled.DTYPES[name] for name in FLOATS}

Canonical = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def main_dtype(entries: Mapping[str, Entry]) -> torch.dtype:
    """The floating-point dtype that most of the weights have."""
    counts = Counter[str]()
    for entry in entries.values():
        counts[entry.dtype] += entry.numel
    known = [dtype for dtype, _ in counts.most_common() if dtype in DTYPES]
    if not known:
        raise CheckpointError(f"the weights are stored as {listed(sorted(counts))}; read are {listed(sorted(DTYPES))}")
    return DTYPES[known[0]]


def load_weights(
    module: nn.Module, entries: Mapping[str, Entry], dtype: torch.dtype | None, canonical: Canonical
) -> None:
    """Fills a module that was built on `meta`, strictly.

    `canonical` turns an old spelling of the state dict into the module's own; a name it drops is ignored. Tensors that
    already have the dtype stay views of the memory-mapped file; the others are converted one at a time. With None, each
    tensor keeps the dtype it is stored in.

    Raises CheckpointError listing missing and unexpected names, wrong shapes and unreadable dtypes, before any is read.
    """
    where = next(iter(entries.values())).file.parent if entries else Path()
    on_meta = {name: torch.empty(entry.shape, device="meta") for name, entry in entries.items()}
    own_names = {name: list(canonical({name: tensor})) for name, tensor in on_meta.items()}
    if clashes := [name for name, n in Counter(new for news in own_names.values() for new in news).items() if n > 1]:
        raise CheckpointError(f"{where} holds {listed(clashes)} in two spellings; remove one")
    check(module, canonical(on_meta), where)
    kept = {name: entry for name, entry in entries.items() if own_names[name]}
    if strange := {entry.dtype for entry in kept.values()} - set(DTYPES):
        raise CheckpointError(f"{where} stores weights as {listed(sorted(strange))}; read are {listed(sorted(DTYPES))}")
    state: dict[str, Tensor] = {}
    for name, tensor in _tensors(kept):
        state |= {new: value.to(dtype) for new, value in canonical({name: tensor}).items()}
    module.load_state_dict(state, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    module.eval()


def check(module: nn.Module, found: Mapping[str, Tensor], where: Path) -> None:
    """Raises CheckpointError, in one message, for every difference in names or shapes."""
    if text := differences(module, found, "file"):
        raise CheckpointError(f"the weights in {where} do not fit the config.json beside them: {text}")


def differences(module: nn.Module, found: Mapping[str, Tensor], place: str) -> str:
    """Names and shapes that differ from those of a module, as a person reads them; "" for none.

    place: of what was found.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} ({place} {tuple(found[name].shape)}, expected {tuple(tensor.shape)})"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems = {"missing keys": missing, "unexpected keys": unexpected, "wrong shapes": shapes}
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names)


def vae_dtype(vae: Autoencoder, entries: Mapping[str, Entry], dtype: torch.dtype | None) -> torch.dtype | None:
    """What to load a VAE as: weights stored in the wanted dtype stay mapped, others take the one they run in."""
    return dtype if dtype is None or main_dtype(entries) == dtype else vae.compute_dtype(dtype)


def _tensors(entries: Mapping[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """Tensors as views of mapped files, one file after the other."""
    for file in sorted({entry.file for entry in entries.values()}):
        source = open_source(file, allow_unknown_globals=True)  # who made the entries decided that
        for name, entry in entries.items():
            if entry.file == file:
                if source.entries.get(name) != entry:
                    raise CheckpointError(f"{file} changed while it was read; load it again")
                yield name, source.tensor(name)
