"""A game that goes wrong on command; the processes that play it import nothing else."""

import os
import time
from pathlib import Path

from scalezero.envs.spec import Listed, Page, Task, TaskError, Text
from scalezero.envs.workers import Shown

ACTIONS = ("die", "go on", "hang", "raise", "win")
DIE, ON, HANG, RAISE, WIN = map(float, range(5))
TASK = Task(
    name="fake/game",
    observation=Text(5),
    action=Listed(5),
    action_repeat=1,
    max_decisions=4,
    floor=0.0,
    ceiling=1.0,
    target=1.0,
    source="none",
)


class Fake:
    """A game whose commands say what goes wrong. `plan` may have its starts go wrong too."""

    def __init__(self, plan: str, folder: Path | None = None):
        match plan:
            case "refuse":
                raise TaskError("fake/game: this file is no game")
            case "crash":
                os._exit(3)
            case "sleep":
                time.sleep(60)
        self._plan, self._folder, self._time = plan, folder, 0

    def reset(self):
        self._time = 0
        if self._plan == "lame" or (self._plan == "slip" and self._first()):
            os._exit(4)
        return self._shown(0)

    def _first(self):
        assert self._folder is not None
        mark = self._folder / "slipped"
        first = not mark.exists()
        mark.touch()
        return first

    def step(self, command):
        match command:
            case "die":
                os._exit(7)
            case "hang":
                time.sleep(60)
            case "raise":
                raise KeyError("lost")
        self._time += 1
        return self._shown(1, over=command == "win")

    def _shown(self, reward, over=False):
        return Shown(Page(f"time {self._time}", ACTIONS), reward, over, {"pages": 1})
