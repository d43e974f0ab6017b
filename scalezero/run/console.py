"""What does a person see of a run? A live table on a terminal, plain lines anywhere else."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from scalezero.envs.scores import summarise
from scalezero.envs.spec import Task

EARLY = 3  # numbers of updates: at first, with a call that compiles, with one that waits for it
WINDOW_SECONDS = 60.0  # speeds are means over this much of the past


class Progress:
    """The progress of a run, shown while it is entered as a context.

    Decisions are counted as in `run.decisions`: those of each task. Speeds are of all tasks
    together.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        total_decisions: int,
        *,
        console: Console | None = None,
        plain_seconds: float = 15.0,
    ) -> None:
        """Show on `console`; where that is no terminal, a line every `plain_seconds`."""
        self._tasks = {task.name: task for task in tasks}
        self._total = total_decisions
        self._console = console or Console()
        self._plain_seconds = plain_seconds
        self._returns: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._start = self._last_line = time.monotonic()
        # seconds, interactions, decisions, updates
        self._past: deque[tuple[float, int, int, int]] = deque()
        self._decisions = self._updates = 0
        self._early: list[int] = []  # the first numbers of updates that were told
        self._live = Live(
            console=self._console,
            get_renderable=self._picture,
            refresh_per_second=2,
            transient=True,
        )

    def __enter__(self) -> "Progress":
        """Start showing."""
        self._start = self._last_line = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing; what was said by `message` stays."""
        self._live.stop()

    def update(
        self,
        *,
        decisions: int,
        interactions: int | None = None,
        updates: int | None = None,
        returns: Mapping[str, float] | None = None,
    ) -> None:
        """Note where the run stands.

        Args:
            decisions: Of each task, since the run began.
            interactions: Of all tasks together; None: as many of each.
            updates: Since the run began; None where unchanged.
            returns: Of the last training episodes, by task.
        """
        now = time.monotonic()
        if updates is not None:
            if len(self._early) < EARLY and updates not in self._early:
                self._early.append(updates)
                if len(self._early) == EARLY:
                    self._past.clear()
            self._updates = updates
        self._decisions = decisions
        self._returns |= returns or {}
        everything = decisions * len(self._tasks) if interactions is None else interactions
        self._past.append((now, everything, self._decisions, self._updates))
        while len(self._past) > 2 and self._past[0][0] < now - WINDOW_SECONDS:
            self._past.popleft()
        if not self._console.is_terminal and now - self._last_line >= self._plain_seconds:
            self._last_line = now
            self.message(self._line())

    def evaluated(self, means: Mapping[str, float]) -> None:
        """Note the mean returns of an evaluation, by task."""
        for name, mean in means.items():
            self._best[name] = max(mean, self._best.get(name, mean))
        scores = ", ".join(f"{name} {number(mean)}" for name, mean in means.items())
        self.message(f"evaluation at {self._decisions:,} decisions: {scores}")

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _speeds(self) -> tuple[float, float, float]:
        """Decisions/s of all tasks, updates/s, and the seconds left."""
        if len(self._past) < 2:
            return nan, nan, nan
        (then, *before), (now, *after) = self._past[0], self._past[-1]
        each = [(b - a) / max(now - then, 1e-9) for a, b in zip(before, after, strict=True)]
        everything, rate, updating = each
        # Turns learn now and then: from one call of updates to the next says how fast it goes.
        known = not self._early or (len(self._early) == EARLY and self._updates > self._early[-1])
        left = (self._total - self._decisions) / rate if rate and known else nan
        return everything, updating, left

    def _line(self) -> str:
        deciding, updating, left = self._speeds()
        returns = ", ".join(f"{name} {number(value)}" for name, value in self._returns.items())
        return (
            f"{self._decisions:,} of {self._total:,} decisions of each task | "
            f"{number(deciding)} decisions/s, {number(updating)} updates/s | "
            f"{clock(time.monotonic() - self._start)} gone, {clock(left)} left | {returns or '–'}"
        )

    def _picture(self) -> Group:
        table = Table("task", box=None, pad_edge=False)
        for heading in ("last return", "best evaluation", "target"):
            table.add_column(heading, justify="right")
        for name, task in self._tasks.items():
            best = self._best.get(name, nan)
            solved = "green" if best >= task.target else None
            last = number(self._returns.get(name, nan))
            table.add_row(name, last, number(best), number(task.target), style=solved)
        deciding, updating, left = self._speeds()
        foot = Table.grid(padding=(0, 2))
        foot.add_row(
            ProgressBar(self._total, self._decisions, width=30),
            f"{self._decisions:,} / {self._total:,} decisions of each task",
        )
        foot.add_row(
            f"{clock(time.monotonic() - self._start)} gone, {clock(left)} left",
            f"{number(deciding)} decisions/s, {number(updating)} updates/s",
        )
        return Group(table, foot)


def print_scores(
    tasks: Sequence[Task],
    means: Mapping[str, float],
    *,
    path: Path | None = None,
    console: Console | None = None,
) -> None:
    """Print a table of what each task's evaluation reached, and where the run's files are.

    Args:
        means: Mean return by task; a task without one is left out.
        path: The run directory.
    """
    console = console or Console()
    table = Table()
    table.add_column("task", min_width=max(len(name) for name in means))  # names are for copying
    for heading in ("floor", "reached return", "ceiling", "normalised score"):
        table.add_column(heading, justify="right")
    for task in (task for task in tasks if task.name in means):
        mean = means[task.name]
        score = task.normalised(mean)
        cells = (number(task.floor), number(mean), number(task.ceiling), number(score, 3))
        table.add_row(task.name, *cells)
    console.print(table)
    total = summarise(
        {task.name: task.normalised(means[task.name]) for task in tasks if task.name in means}
    )
    if len(means) > 1 and isfinite(total.mean):
        console.print(
            f"normalised score: mean {number(total.mean, 3)}, median {number(total.median, 3)}",
            highlight=False,
        )
    if path is not None:
        console.print(f"run directory: {path}", highlight=False, markup=False, soft_wrap=True)


def number(value: float, digits: int = 1) -> str:
    """`value` for people; a dash where there is none."""
    return f"{value:,.{digits}f}" if isfinite(value) else "–"


def clock(seconds: float) -> str:
    """`seconds` as h:mm:ss; a dash where unknown."""
    if not isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
