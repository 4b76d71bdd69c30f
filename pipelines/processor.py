"""What the processor can do. Standard library only: `ldm doctor` asks where torch may not load."""

from pathlib import Path


def native_bf16() -> bool | None:
    """Whether the processor multiplies bfloat16 itself (else torch emulates it, slowly); None where nobody says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), None)
    return None if flags is None else not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
