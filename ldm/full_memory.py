"""Errors that mean that memory is full. Standard library only."""

WORDS = ("out of memory", "can't allocate memory", "not enough memory")  # of CUDA, and of CPUs on Linux and Windows


def is_full(error: BaseException) -> bool:
    """Whether an error means that memory is full, on whatever device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in WORDS)
