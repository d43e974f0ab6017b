"""How fast does a run go, and how much memory does it take?"""

import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    busy: float  # seconds with work for the device; of this start


class Busy:
    """For how long the device had something to do, of work that several threads ask of it."""

    def __init__(self) -> None:
        """None so far."""
        self._lock = threading.Lock()
        self._under_way = 0
        self._passed = self._since = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work that is asked for within this block, and has ended when it is left."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    @property
    def seconds(self) -> float:
        """With one piece of work under way, or more."""
        self._change(0)
        return self._passed

    def _change(self, begun: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._passed += now - self._since if self._under_way else 0.0
            self._under_way += begun
            self._since = now


def rates(before: Mark, now: Mark) -> dict[str, float]:
    """Of the time in between: decisions per second of all tasks and of each suite, updates per
    second, and the share in which the device had nothing to do.
    """
    passed = max(now.seconds - before.seconds, 1e-9)
    suites: dict[str, float] = {}
    for task, made in now.made.items():
        name = f"{task.partition('/')[0]}/decisions_per_second"
        suites[name] = suites.get(name, 0.0) + (made - before.made[task]) / passed
    return {
        "decisions_per_second": sum(suites.values()),
        "updates_per_second": (now.updates - before.updates) / passed,
        "device_idle": max(0.0, 1 - (now.busy - before.busy) / passed),
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
