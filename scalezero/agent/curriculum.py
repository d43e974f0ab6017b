"""Which tasks count as solved, and when does the model grow?

A pure state machine: evaluations and update counts go in, decisions come out, each with its reason
in words.

Source: ScaleZero, Section 4.2 (arXiv:2509.07945). Differs: solved tasks go on being evaluated and
are reopened when they slip; a task can be judged by several evaluations and by a lower confidence
bound.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from scalezero.config import DpsSettings
from scalezero.envs.spec import Task


@dataclass(frozen=True)
class Curriculum:
    """Where a run stands; tasks are in the run's order."""

    solved: tuple[bool, ...]
    recent: tuple[tuple[tuple[float, ...], ...], ...]  # returns of each task's last evaluations
    stage: int = 0
    switched: int = 0  # the update at which this stage began
    solved_then: int = 0  # tasks that were solved at that time

    def as_json(self) -> dict[str, Any]:
        """What `curriculum_of` reads."""
        return asdict(self)


def curriculum(tasks: int) -> Curriculum:
    """Nothing solved, nothing grown."""
    return Curriculum((False,) * tasks, ((),) * tasks)


def curriculum_of(record: Mapping[str, Any]) -> Curriculum:
    """The curriculum that `as_json` wrote."""
    recent = tuple(tuple(tuple(returns) for returns in task) for task in record["recent"])
    return Curriculum(**{**record, "solved": tuple(record["solved"]), "recent": recent})


def judged(
    now: Curriculum,
    tasks: Sequence[Task],
    returns: Sequence[Sequence[float]],
    settings: DpsSettings,
) -> tuple[Curriculum, tuple[str, ...]]:
    """The curriculum after one more evaluation of every task, and what changed, in words.

    A task is solved when the mean of its last `settings.average` evaluations, less
    `settings.confidence` standard errors, reaches its target. It is reopened when that mean falls
    below `settings.reopen` of the way from its floor to its target.
    """
    recent = tuple(
        (*past, tuple(new))[-settings.average :]
        for past, new in zip(now.recent, returns, strict=True)
    )
    solved, said = list(now.solved), []
    for number, (task, past) in enumerate(zip(tasks, recent, strict=True)):
        pooled = np.concatenate(past)
        mean, error = float(np.mean(pooled)), _standard_error(pooled)
        target = goal(task, settings)
        line = task.floor + settings.reopen * (target - task.floor)
        if now.solved[number] and mean < line:
            solved[number] = False
            said.append(f"{task.name} reopened: mean return {mean:,.1f} is below {line:,.1f}")
        enough = len(past) == settings.average and mean - settings.confidence * error >= target
        if not now.solved[number] and enough:
            solved[number] = True
            said.append(f"{task.name} solved: mean return {mean:,.1f}, target {target:,.1f}")
    return replace(now, solved=tuple(solved), recent=recent), tuple(said)


def _standard_error(returns: np.ndarray) -> float:
    if len(returns) < 2:
        return 0.0
    return float(np.std(returns, ddof=1)) / math.sqrt(len(returns))


def goal(task: Task, settings: DpsSettings) -> float:
    """The return from which `task` counts as solved."""
    if settings.target is None:
        return task.target
    return task.floor + settings.target * (task.ceiling - task.floor)


def reason_to_grow(now: Curriculum, updates: int, settings: DpsSettings) -> str | None:
    """Why the model should grow at this update, in words; None if it should not.

    Stage 0 lasts `settings.first_updates` at least. After that a stage ends when enough tasks were
    solved in it, the quota being an even share of the unsolved ones among the stages left, or
    after `settings.stage_updates`. The last stage lasts to the end of the run.
    """
    left = settings.stages - 1 - now.stage
    begun = now.stage > 0 or updates >= settings.first_updates
    if not settings.on or left <= 0 or not begun:
        return None
    total = len(now.solved)
    solved = sum(now.solved)
    quota = max(1, math.ceil((total - solved) / left))
    if solved - now.solved_then >= quota:
        return f"{solved} of {total} tasks solved, {now.solved_then} when it began, quota {quota}"
    if updates - now.switched >= settings.stage_updates:
        return f"the stage has lasted {updates - now.switched:,} updates"
    return None


def advanced(now: Curriculum, updates: int) -> Curriculum:
    """The curriculum at the first update of the next stage."""
    return replace(now, stage=now.stage + 1, switched=updates, solved_then=sum(now.solved))
