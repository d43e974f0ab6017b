"""With which units does this machine's CPU multiply bfloat16?"""

import functools
from pathlib import Path

TOLD = Path("/proc/cpuinfo")  # by Linux; where it is not, no units are taken for granted


def multiplies_bfloat16() -> bool:
    """Whether there are units for products of bfloat16, which make them faster than float32.

    They are those of AMX (Intel) or of AVX-512 (AMD since Zen 4, some of Intel's).
    """
    return has_amx() or "avx512_bf16" in _flags()


def has_amx() -> bool:
    """Whether these are the larger units, AMX."""
    return "amx_bf16" in _flags()


@functools.cache
def _flags() -> frozenset[str]:
    return frozenset(TOLD.read_text().split()) if TOLD.exists() else frozenset()
