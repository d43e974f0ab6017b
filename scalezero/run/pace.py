"""How fast does a run go?"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """Where a run stands."""

    seconds: float  # of training
    updates: int
    made: Mapping[str, int]  # decisions of each task


def rates(before: Mark, now: Mark) -> dict[str, float]:
    """Decisions per second of all tasks and of each suite, and updates per second, in between."""
    passed = max(now.seconds - before.seconds, 1e-9)
    suites: dict[str, float] = {}
    for task, made in now.made.items():
        name = f"{task.partition('/')[0]}/decisions_per_second"
        suites[name] = suites.get(name, 0.0) + (made - before.made[task]) / passed
    return {
        "decisions_per_second": sum(suites.values()),
        "updates_per_second": (now.updates - before.updates) / passed,
        **suites,
    }
