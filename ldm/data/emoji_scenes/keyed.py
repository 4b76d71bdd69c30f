"""Random numbers that depend on a key alone: no history, the same on every machine and Python."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


def digest(*key: object) -> int:
    """64 bits of BLAKE2b over the key's parts, each told apart from the next."""
    text = "\x1f".join(map(str, key))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def share(*key: object) -> float:
    """The key's place in [0, 1)."""
    return (digest(*key) >> 11) * 2.0**-53


class Keyed:
    """A short stream of draws for one key: SplitMix64 (Steele, Lea and Flood, 2014) from the key's digest."""

    __slots__ = ("state",)

    def __init__(self, *key: object) -> None:
        self.state = digest(*key)

    def bits(self) -> int:
        """64 random bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def unit(self) -> float:
        """A number in [0, 1)."""
        return (self.bits() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely (to one part in 2^32)."""
        return items[(self.bits() >> 32) * len(items) >> 32]
