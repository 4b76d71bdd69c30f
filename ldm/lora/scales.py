"""How strongly a LoRA acts: one number, or numbers by block."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Given = float | Mapping[str, float]


@dataclass(frozen=True)
class Scale:
    """One number, and others for what begins with a prefix; the longest prefix decides.

    Prefixes are own names or their beginnings, cut at dots: `unet`, `text_encoder_2`, `unet.down_blocks.1`, or without
    the part for the U-Net's: `down_blocks.1`.
    """

    default: float
    blocks: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, given: Given, modules: Iterable[str]) -> "Scale":
        """A number, or {prefix: number} with "" for the rest (1 if not given). `modules`: all own names of the model.

        Raises ValueError for what is no finite number, or a prefix with which no module begins.
        """
        if not isinstance(given, Mapping):
            return cls(_number(given))
        names, parts = list(modules), {name.split(".")[0] for name in modules}
        full = {p if p.split(".")[0] in parts else f"unet.{p}": _number(value) for p, value in given.items() if p}
        if strange := [prefix for prefix in full if not any(_begins(name, prefix) for name in names)]:
            raise ValueError(
                f"no module of this model begins with {strange[0]!r}; prefixes are such as 'text_encoder', 'mid_block' "
                "or 'down_blocks.1.attentions.0'"
            )
        return cls(_number(given.get("", 1.0)), tuple(sorted(full.items())))

    def at(self, module: str) -> float:
        """The number for a module by its own name."""
        fitting = [(len(prefix), value) for prefix, value in self.blocks if _begins(module, prefix)]
        return max(fitting)[1] if fitting else self.default

    @property
    def given(self) -> Given:
        """As it can be given again."""
        return self.default if not self.blocks else {"": self.default, **dict(self.blocks)}


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"the scale of a LoRA is a finite number, or a number for each block, not {value!r}")
    return float(value)
