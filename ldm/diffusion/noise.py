"""Where a run's randomness comes from: one callable draws the initial noise and all that samplers add later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


class SeededNoise:
    """`noise()` draws N(0, I) of `shape` (b,c,h,w), float32 on `device`.

    Args:
        seeds: b seeds. Each image owns a CPU generator, so image i depends neither on its batch nor on the device.
        generator: instead, a generator that draws the batch at once, or b of them that draw one image each, as in
            diffusers (a CPU generator draws on the CPU, then the noise moves). None and no seeds: torch's global one.
        dtype: precision of the draw; half precision is another stream of random numbers, here as in diffusers.

    Raises:
        ValueError: both or the wrong number are given, or a CUDA generator for a CPU run.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        seeds: Sequence[int] | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if seeds is not None and generator is not None:
            raise ValueError("give seed or generator, not both")
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self.dtype = dtype
        self.generators: Generator | list[Generator] | None
        if seeds is not None:
            self.generators = [Generator().manual_seed(seed) for seed in seeds]
        else:
            self.generators = list(generator) if isinstance(generator, Sequence) else generator
        self._check()

    def __call__(self) -> Tensor:
        if isinstance(self.generators, list):
            images = [self._draw((1, *self.shape[1:]), one) for one in self.generators]  # b x (1,c,h,w)
            return torch.cat(images).to(self.device, torch.float32)
        return self._draw(self.shape, self.generators).to(self.device, torch.float32)

    def _draw(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        source = generator.device if generator is not None else self.device
        return torch.randn(shape, generator=generator, device=source, dtype=self.dtype)

    def _check(self) -> None:
        several = isinstance(self.generators, list)
        each = self.generators if isinstance(self.generators, list) else [self.generators]
        if several and len(each) != self.shape[0]:
            raise ValueError(f"{len(each)} seeds or generators for {self.shape[0]} images: give one for each image")
        for generator in each:
            if generator is not None and generator.device.type not in ("cpu", self.device.type):
                raise ValueError(f"a generator on {generator.device} cannot draw for {self.device}: use one on the CPU")
