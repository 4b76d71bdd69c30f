"""Orders that depend on a key alone."""

from array import array

from ldm.data.emoji_scenes.keyed import Keyed


def shuffled(count: int, *key: object) -> "array[int]":
    """The numbers 0 to count - 1 in an order drawn by the key (Fisher and Yates; Durstenfeld 1964)."""
    order = array("l", range(count))
    bits = Keyed(*key).bits
    for last in range(count - 1, 0, -1):
        other = (bits() >> 32) * (last + 1) >> 32
        order[last], order[other] = order[other], order[last]
    return order
