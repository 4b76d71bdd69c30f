"""What a pipeline does to need less memory."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldm.batching import Batching
from ldm.mapped import let_go
from ldm.model import LatentDiffusion
from pipelines.control import Named
from pipelines.device import as_device


class WithMemory:
    """Offloading, tiles and slices of the autoencoder, batches in parts that fit."""

    model: LatentDiffusion
    device: torch.device
    _controlnets: tuple[Named, ...]

    def __init__(self) -> None:
        self._offload = False
        self._at_work = Counter[str]()  # calls that use a part
        self._batchings: dict[Any, Batching] = {}

    def parts(self) -> dict[str, nn.Module]:
        """The model's networks, and the pipeline's ControlNets."""
        controlnets = nn.ModuleList([net.network for net in self._controlnets])
        return {**self.model.networks(), "controlnet": controlnets}

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
        for network in self.parts().values():
            network.to("cpu")

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """While these parts are at work: they are on the device, under offload only for so long; what is mapped from a
        file is in this process's memory only for so long, too."""
        networks = {name: network.to(self.device) for name, network in self.parts().items() if name in names}
        self._at_work.update(names)
        try:
            yield
        finally:
            self._at_work.subtract(names)
            for name, network in networks.items():
                if self._at_work[name]:
                    continue
                if self._offload:
                    network.to("cpu")
                let_go(network.parameters())

    def quantize(self, kind: str) -> None:
        """Holds the weights of the U-Net's attention and feed-forward layers in 8 bits: less memory, another picture.

        kind: "int8", or, on a GPU that multiplies it, "fp8" (`ldm.quantize`). Both need torchao. There is no way back:
            such a model takes no LoRA that was not fused before, keeps its dtype and cannot be saved.

        Raises ValueError where the model, the device or what is installed does not allow it.
        """
        from ldm.quantize import quantize

        quantize(self.model, kind, self.device)

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
