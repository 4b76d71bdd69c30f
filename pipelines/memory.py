"""What a pipeline does to need less memory."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ldm.batching import Batching
from ldm.model import LatentDiffusion
from pipelines.device import as_device


class WithMemory:
    """Offloading, tiles and slices of the autoencoder, batches in parts that fit."""

    model: LatentDiffusion
    device: torch.device

    def __init__(self) -> None:
        self._offload = False
        self._at_work = Counter[str]()  # calls that use a part
        self._batchings: dict[Any, Batching] = {}

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keeps on the accelerator only the part that is at work: less memory, a little slower.

        The accelerator is the pipeline's, or CUDA (number `gpu_id`). Raises RuntimeError where there is none.
        """
        if device is None:
            device = f"cuda:{gpu_id}" if gpu_id is not None else None if self.device.type == "cpu" else self.device
        place = as_device(device)
        if place.type == "cpu":
            raise RuntimeError("enable_model_cpu_offload needs an accelerator, and there is none here")
        self._offload, self.device = True, place
        for network in self.model.networks().values():
            network.to("cpu")

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """While this part of the model is at work: it is on the device, under offload only for so long."""
        network = self.model.networks()[name].to(self.device)
        self._at_work[name] += 1
        try:
            yield
        finally:
            self._at_work[name] -= 1
            if self._offload and not self._at_work[name]:
                network.to("cpu")

    def enable_vae_tiling(self) -> None:
        """Decodes large pictures in overlapping tiles: less memory."""
        self.model.autoencoder.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.model.autoencoder.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decodes the pictures of a batch one by one: less memory."""
        self.model.autoencoder.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.model.autoencoder.disable_slicing()

    def batching(self, x: Tensor, *work: object) -> Batching:
        """How many of x (b, c, h, w) go through a piece of work at once: measured once for each size and kind."""
        precision = self.model.dtype, next(self.model.autoencoder.parameters()).dtype
        return self._batchings.setdefault((*work, x.shape[1:], x.device, *precision), Batching())
