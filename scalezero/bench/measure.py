"""How long does a call take, and how much of what the machine can do does it use?"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from scalezero.bench.ceilings import Ceilings
from scalezero.bench.work import NO_WORK, Work

FEWEST = 5  # calls of which a median is worth telling


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median, and where the middle 80 % of the calls lie."""

    median: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class Measurement:
    """What one kind of call costs."""

    name: str
    timing: Timing
    items: int  # that one call makes
    unit: str  # what they are
    work: Work = NO_WORK  # that it cannot do without
    notes: dict[str, float] | None = None  # what else was measured, by name

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.timing.median

    def share(self, ceilings: Ceilings) -> float:
        """Of the call's time, what its work alone would take at the machine's ceilings."""
        return self.work.seconds(ceilings.flops, ceilings.bytes) / self.timing.median

    def as_json(self, ceilings: Ceilings) -> dict[str, Any]:
        """All of it, for `json.dumps`."""
        return {
            "name": self.name,
            "seconds": asdict(self.timing),
            "items": self.items,
            "unit": self.unit,
            "per_second": self.rate,
            **asdict(self.work),
            "share_of_limit": self.share(ceilings),
            **(self.notes or {}),
        }


def timed(call: Callable[[], Any], seconds: float) -> Timing:
    """The timing of `call`, repeated for about so many seconds after two calls that do not count.

    What the call returns is waited for.
    """
    for _ in range(2):  # compiles; and finds its memory
        jax.block_until_ready(call())
    took: list[float] = []
    while len(took) < FEWEST or sum(took) < seconds:
        began = time.perf_counter()
        jax.block_until_ready(call())
        took.append(time.perf_counter() - began)
    return timing(took)


def timing(took: list[float]) -> Timing:
    """The timing that single calls amount to."""
    low, median, high = np.quantile(took, [0.1, 0.5, 0.9])
    return Timing(float(median), float(low), float(high), len(took))
