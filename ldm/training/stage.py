"""What the trainer is given: modules that return their own loss, and examples that depend on their number alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from configs.training import LoopConfig

Batch: TypeAlias = dict[str, Tensor]


@dataclass(eq=False)
class Player:
    """One module with its own optimizer. Most stages have one; adversarial training has two.

    name: of its files in a checkpoint.
    module: `forward(batch, step) -> (loss (), metrics)`, metrics being numbers or () tensors by name. Players run one
        after the other on the same batch; a metric of more dimensions is none, but is added to it for later players.
    rates: prefixes of parameter names with a rate of their own, as factors of the rate of the run.
    starts: the first step it takes part in.
    averaged: whether its exponential moving average is kept (if the loop keeps any).
    decays: whether weight decay acts on it.
    """

    name: str
    module: nn.Module
    rates: Mapping[str, float] = field(default_factory=dict)
    starts: int = 0
    averaged: bool = True
    decays: bool = True


class Stage(Protocol):
    """What is trained, on what, for how long."""

    @property
    def loop(self) -> LoopConfig: ...

    @property
    def players(self) -> list[Player]: ...

    def example(self, index: int) -> Batch:
        """Example `index` of the run, CPU tensors without a batch axis. All chance in it comes from `index`, so that a
        run depends neither on the number of processes nor on where it was interrupted."""

    def samples(self, averaged: Mapping[str, nn.Module]) -> Image.Image | None:
        """A picture for people of what the averaged weights can do, or None."""


@runtime_checkable
class Named(Protocol):
    """A stage whose examples have names a person knows."""

    def name_of(self, index: int) -> str:
        """Of example `index` of the run, such as its picture's file."""


@runtime_checkable
class Measured(Protocol):
    """A stage that says now and then how good the averaged weights are."""

    @property
    def measure_every(self) -> int:
        """Steps between measures; 0: none."""

    def measure(self, averaged: Mapping[str, nn.Module]) -> dict[str, float]:
        """Numbers that can be compared between steps and runs, by name."""
