"""Measure a part of a run at a size: the verb `bench`."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scalezero import configure
from scalezero.bench.ceilings import Ceilings, ceilings
from scalezero.bench.measure import Measurement
from scalezero.bench.parts import PARTS
from scalezero.bench.whole import collection, end_to_end
from scalezero.config import Config, ConfigError
from scalezero.envs import catalog
from scalezero.run import compiled
from scalezero.run.folder import this_start, write
from scalezero.run.logs import plain
from scalezero.run.precision import precision_of

LIKE = Path(__file__).parent / "like"  # other programs' settings, as ours

WORLDS = ("environments", "collection", "end-to-end")  # parts that need the suites
SIZED = ("search", "experts", "encoder")  # parts that `rows` says the size of


@dataclass(frozen=True)
class Bench:
    """What was measured, on what, of what."""

    part: str
    config: Config
    ceilings: Ceilings
    measurements: tuple[Measurement, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, for `json.dumps`."""
        return plain(
            {
                "part": self.part,
                "config": self.config.model_dump(exclude_none=True),
                "ran_on": this_start(),
                "ceilings": asdict(self.ceilings),
                "measurements": [each.as_json(self.ceilings) for each in self.measurements],
            }
        )

    def headline(self) -> dict[str, float]:
        """The two figures of an end-to-end measurement that programs are compared by."""
        rates = {each.name: each.rate for each in self.measurements}
        return {"decisions_per_s": rates["decide"], "windows_per_s": rates["learn"]}

    def save(self, path: Path) -> None:
        """Write it all to a file."""
        write(path, json.dumps(self.as_json(), indent=1) + "\n")

    def table(self) -> Table:
        """What was measured, a line each; names that are too long for a terminal go on below."""
        top = self.ceilings
        can = f"{top.device}: {top.flops / 1e9:,.0f} GFLOP/s in one large product, "
        can += f"{top.bytes / 1e9:,.1f} GB/s read from one large array"
        table = Table(title=can, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
        table.add_column("what", overflow="fold")
        units = {each.unit for each in self.measurements}
        rate = f"{units.pop()}/s" if len(units) == 1 else ""
        for heading in ("ms", rate or "per second", "GFLOP/s", "GB/s", "of limit"):
            table.add_column(heading, justify="right", no_wrap=True)
        for each in self.measurements:
            time, work = each.timing, each.work
            known = work.flops > 0 or work.bytes > 0
            table.add_row(
                each.name,
                f"{1e3 * time.median:,.2f} ±{(time.high - time.low) / 2 / time.median:.0%}",
                f"{each.rate:,.{0 if each.rate >= 100 else 2}f} {'' if rate else each.unit}",
                f"{work.flops / time.median / 1e9:,.1f}" if work.flops else "",
                f"{work.bytes / time.median / 1e9:,.1f}" if work.bytes else "",
                f"{each.share(top):.0%}" if known else "",
            )
        return table

    def show(self, console: Console | None = None) -> None:
        """Print the table, and below it what else was measured."""
        console = console or Console()
        console.print(self.table())
        for each in self.measurements:
            for name, value in (each.notes or {}).items():
                words = name.replace("_", " ")
                said = f"{value:.1%}" if name.startswith("share") else f"{value:,.1f}"
                console.print(f"{each.name}: {words} {said}", highlight=False)


def likes() -> tuple[str, ...]:
    """The names of other programs' settings."""
    return tuple(sorted(path.stem for path in LIKE.glob("*.toml")))


def like(name: str) -> Path:
    """The file that holds another program's settings."""
    if name not in likes():
        raise ConfigError(f"--like {name}: must be one of {', '.join(likes())}")
    return LIKE / f"{name}.toml"


def require_writable(path: Path) -> None:
    """Raise a `ConfigError` unless a result can be written to `path`; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from error


def bench(
    part: str, config: Config, *, seconds: float, rows: Sequence[int] = (), alone: bool = False
) -> Bench:
    """Measure one part of the run that `config` describes, or all of it.

    Args:
        part: One of `parts()`.
        config: Of the run.
        seconds: To repeat each call for, once it is compiled.
        rows: Sizes, where the part has one: rows of a search, tokens of a layer of experts.
        alone: End to end, leave out training as a run does it, decisions and updates at once.
    """
    if rows and part not in SIZED:
        raise ConfigError(f"--rows: {part} has no rows to choose; only {', '.join(SIZED)} do")
    for task in configure.tasks(config):  # what is missing is said before anything is measured
        if part in WORLDS:
            catalog.require(task)
    compiled.keep()
    with _watched() as watch:
        made = Bench(part, config, ceilings(precision_of(config.model)), ())
        watch(made)
        for each in _measured(part, config, seconds, rows, both=not alone):
            made = replace(made, measurements=(*made.measurements, each))
            watch(made)
    return made


@contextmanager
def _watched() -> Iterator[Callable[[Bench], None]]:
    """Gives a function that shows, on a terminal, what was measured so far.

    Drawn only when there is news: a thread that kept it moving would take its time from what is
    measured.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda made: None
        return
    begin = Text("measuring what this machine can do …", style="dim")
    with Live(begin, console=console, auto_refresh=False, transient=True) as live:
        on = Text("measuring on …", style="dim")
        yield lambda made: live.update(Group(made.table(), on), refresh=True)


def parts() -> tuple[str, ...]:
    """What can be measured."""
    return (*PARTS, "collection", "end-to-end")


def _measured(
    part: str, config: Config, seconds: float, rows: Sequence[int], *, both: bool
) -> Iterator[Measurement]:
    match part:
        case "collection":
            yield from collection(config, seconds)
        case "end-to-end":
            yield from end_to_end(config, seconds, both=both)
        case _:
            yield from PARTS[part](config, seconds, rows)
