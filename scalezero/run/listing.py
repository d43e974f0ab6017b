"""Which tasks are there, told to a person or to a program?"""

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from scalezero.envs import catalog
from scalezero.envs.spec import Continuous, Discrete, Image, Listed, Task, Text, Vector
from scalezero.run.console import number
from scalezero.run.logs import plain


def known() -> list[Task]:
    """Every task known by name."""
    return [catalog.find(name) for name in catalog.names()]


def as_json() -> list[dict[str, Any]]:
    """Every field of every known task, for `json.dumps`."""
    return [plain(_row(task)) for task in known()]


def show(console: Console | None = None) -> None:
    """Print the known tasks, a table for each source of their scales."""
    console = console or Console()
    for source, group in groupby(known(), key=lambda task: task.source):
        group = list(group)
        table = Table(title=source, title_justify="left")
        table.add_column("task", min_width=max(len(task.name) for task in group))  # for copying
        table.add_column("shows")
        table.add_column("takes")
        for heading in ("floor", "ceiling", "target"):
            table.add_column(heading, justify="right")
        for task in group:
            scale = (number(value) for value in (task.floor, task.ceiling, task.target))
            table.add_row(task.name, words(task.observation), words(task.action), *scale)
        console.print(table)
    others = "gym/ takes any other Gymnasium id too, atari/ its other games, jericho/ your stories."
    console.print(others, highlight=False)


def words(space: Image | Vector | Text | Discrete | Continuous | Listed) -> str:
    """A space in a few words."""
    match space:
        case Image():
            return f"{space.height}×{space.width}×{space.channels} pixels"
        case Vector():
            return f"{space.size} numbers"
        case Text():
            return "text"
        case Listed():
            return f"1 of {space.count} listed"
        case Discrete():
            return f"{space.count} choices"
        case Continuous():
            return f"[-1, 1]^{space.size}"


def _row(task: Task) -> dict[str, Any]:
    spaces = {part: getattr(task, part) for part in ("observation", "action")}
    described = {p: {"kind": type(s).__name__.lower(), **vars(s)} for p, s in spaces.items()}
    return vars(task) | described
