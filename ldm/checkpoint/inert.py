"""What a pickle may hold once it is read: plain values, tensors described but not read, and stubs that do nothing."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.checkpoint.files import MAX_CLAIM, MAX_SIDES

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # bytes
STORAGES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}
# What training programs are known to leave in checkpoints beside the weights. Stubs all the same.
FAMILIAR_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")
PLAIN = ("bool", "bytearray", "bytes", "dict", "float", "frozenset", "int", "list", "str", "tuple")
FAMILIAR = {
    "_codecs.encode",
    "argparse.Namespace",
    "collections.defaultdict",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.device",
    "torch.nn.modules.container.ParameterDict",
    "typing.Any",
    *(f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64")),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in PLAIN),
}


class Broken(Exception):
    """What is wrong with a pickle, for the message that names its file."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function. Nothing is imported for it."""

    name: str


@dataclass(slots=True, eq=False)
class Stub:
    """What stands for an object of an unknown class: what the pickle would have put into it."""

    name: str
    items: dict[str, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A record data/<key> of the archive, as so many elements of a type."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: elements of a storage, from an offset on, with shape and strides. It lies inside of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.storage.dtype


def is_familiar(name: str) -> bool:
    """Whether a global is among those that checkpoints of known training programs hold."""
    return name in FAMILIAR or name.partition(".")[0] in FAMILIAR_PACKAGES


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> View:
    """What torch._utils._rebuild_tensor_v2 stands for, checked. `rest` is requires_grad, hooks and metadata."""
    lists = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_SIDES
    if not isinstance(storage, Storage) or not lists:
        raise Broken("it describes a tensor that is none")
    if any(type(n) is not int or not 0 <= n <= MAX_CLAIM for n in (offset, *shape, *stride)):
        raise Broken("it describes a tensor by what are no sizes")
    if len(rest) > 2 and rest[2]:
        raise Broken("it describes a tensor of an unknown kind")
    if math.prod(max(side, 1) for side in shape) > (MAX_CLAIM if 0 in shape else storage.numel):
        raise Broken(f"it describes a tensor of shape {list(shape)} in a storage of {storage.numel:,} elements")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise Broken(f"a tensor of shape {list(shape)} reaches past the end of its storage")
    return View(storage, offset, shape, stride)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _dict(pairs: Any = ()) -> dict[str, Any]:
    """A dict from a dict or from pairs. Keys that are not text are left out, as everywhere here."""
    items = pairs.items() if isinstance(pairs, dict) else pairs
    return {key: value for key, value in items if isinstance(key, str)}


def _same(items: Any = ()) -> Any:
    return items


CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _same,
    "builtins.set": _same,
    "__builtin__.set": _same,
}
