"""With which units does this machine's CPU multiply bfloat16?"""

import functools
from pathlib import Path
from typing import Literal

CPUINFO = Path("/proc/cpuinfo")  # Linux tells here; where nothing does, there are none for us


@functools.cache
def units() -> Literal["amx", "avx512"] | None:
    """The units that make products of bfloat16 faster than those of float32, the larger first.

    AVX-512's stand in AMD's CPUs since Zen 4 (measured on Zen 5) and in some of Intel's.
    """
    flags = CPUINFO.read_text().split() if CPUINFO.exists() else ()
    if "amx_bf16" in flags:
        return "amx"
    return "avx512" if "avx512_bf16" in flags else None
