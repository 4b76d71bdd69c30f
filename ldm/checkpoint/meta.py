"""Networks without memory for their weights, which a file will give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from ldm.checkpoint.errors import CheckpointError

T = TypeVar("T")
C = TypeVar("C")


def on_meta(where: str | Path, network: Callable[[C], T], config: C) -> T:
    """`network(config)` on `meta`. CheckpointError, naming `where` it is from, for one that is nonsense."""
    try:
        with torch.device("meta"), Uninitialised():
            return network(config)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{where} describes no network that can be built ({detail})") from None


class Uninitialised(TorchFunctionMode):
    """Leaves out the initial values of weights.

    On meta there is nothing to fill, yet random initial values make torch import its compiler there: a whole second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
