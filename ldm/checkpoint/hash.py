"""The identity of a model: the SHA-256 of its U-Net's weights, as other programs compute it for a file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ldm.checkpoint.files import find_weights, sha256_of
from ldm.checkpoint.hub import require_folder
from ldm.model import LatentDiffusion
from ldm.quantize import parts_of


@dataclass
class _Known:
    """What is known of a network as long as nobody changes it: the files it came from, or the hash once computed."""

    state: int
    files: tuple[Path, ...] = ()
    stamps: tuple[tuple[int, int], ...] = ()
    digest: str = ""


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def remember_files(network: nn.Module, files: Sequence[Path]) -> None:
    """Notes where a network's weights came from, so that its hash can be computed when somebody asks."""
    _known[network] = _Known(_state(network), tuple(files), _stamps(files))


def remember_hash(network: nn.Module, digest: str) -> None:
    """Notes that a network goes by the hash of the weights that its own were made of."""
    _known[getattr(network, "_orig_mod", network)] = _Known(_state(network), digest=digest)


def weights_hash(model_or_folder: LatentDiffusion | str | Path, variant: str | None = None) -> str:
    """SHA-256, in hex, of the U-Net's weight files one after the other in name order, or of the single file it is in.

    For a model whose U-Net was made or changed in memory, or whose files have changed or gone since, of its state dict
    instead: names, dtypes, shapes and bytes. Edits behind `.data` are not seen; that is how LoRAs are merged, so they
    do not change it until they are fused. Computed once for a model, until its U-Net changes.
    """
    if not isinstance(model_or_folder, LatentDiffusion):
        if Path(model_or_folder).is_file():
            return sha256_of([Path(model_or_folder)])
        return sha256_of(find_weights(require_folder(model_or_folder) / "unet", "unet", variant))
    return network_hash(model_or_folder.unet)


def network_hash(network: nn.Module) -> str:
    """The same of one network, such as a U-Net or a ControlNet."""
    network = getattr(network, "_orig_mod", network)  # inside torch.compile
    known = _known.get(network)
    if known is None or known.state != _state(network):
        known = _known[network] = _Known(_state(network))
    if not known.digest:
        same = known.files and _stamps(known.files) == known.stamps
        known.digest = sha256_of(known.files) if same else hash_of_state(network)
    return known.digest


def pin_hash(model: LatentDiffusion) -> None:
    """Makes sure of a model's hash before changes behind `.data` that will be taken back.

    Those are not seen; so it only has to be computed now where it could not be computed from files later.
    """
    unet: nn.Module = getattr(model.unet, "_orig_mod", model.unet)
    known = _known.get(unet)
    if known is None or not known.files or known.state != _state(unet):
        weights_hash(model)


def forget_hash(unet: nn.Module) -> None:
    """After changes behind `.data` that stay."""
    _known.pop(getattr(unet, "_orig_mod", unet), None)


def _state(module: nn.Module) -> int:
    """Differs after a parameter was written in place or replaced, not after the module was moved or converted."""
    return hash(tuple((id(p), 0 if p.is_inference() else p._version) for p in module.parameters()))


def _stamps(files: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Size and time of the last change of each file; empty when one is gone."""
    try:
        return tuple((stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files))
    except OSError:
        return ()


@torch.no_grad()
def hash_of_state(module: nn.Module) -> str:
    """SHA-256, in hex, of names, dtypes, shapes and bytes of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        for part in parts_of(tensor):
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
