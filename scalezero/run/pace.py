"""How fast does a run go, and how much memory does it take?"""

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import psutil


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


def memory() -> dict[str, float]:
    """Bytes that the process has in memory and has had at most; and on an accelerator, there."""
    now = psutil.Process().memory_info().rss
    taken = {"memory/bytes": float(now), "memory/peak_bytes": float(max(now, _peak()))}
    on_device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in on_device:
        taken["memory/device_peak_bytes"] = float(on_device["peak_bytes_in_use"])
    return taken


def _peak() -> int:
    """The most bytes so far; may lag behind. Linux hands `ru_maxrss` down to child processes."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
