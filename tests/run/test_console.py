import io
from math import nan
from pathlib import Path

import pytest
from rich.console import Console

from scalezero.envs.catalog import find
from scalezero.run import console
from scalezero.run.console import Progress, print_scores

TASKS = [find("toy/catch"), find("dmc/cheetah-run")]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set forward."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def screen(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def test_without_a_terminal_there_is_a_plain_line_now_and_then(clock):
    out = screen(terminal=False)
    with Progress(TASKS, 1000, console=out, plain_seconds=10.0) as progress:
        for step in range(31):
            progress.update(decisions=10 * step, updates=step, returns={"toy/catch": 2.0})
            clock[0] += 1
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1] == (
        "300 of 1,000 decisions of each task | 20.0 decisions/s, 1.0 updates/s | "
        "0:00:30 gone, 0:01:10 left | toy/catch 2.0"
    )


def test_a_resumed_run_counts_speed_from_where_it_began(clock):
    out = screen(terminal=False)
    with Progress(TASKS, 1000, console=out, plain_seconds=1.0) as progress:
        progress.update(decisions=500)
        clock[0] += 10
        progress.update(decisions=510)
    assert "2.0 decisions/s" in out.file.getvalue()


@pytest.mark.parametrize("begun", [0, 500])
def test_the_time_left_is_told_once_updates_take_their_time(clock, begun):
    out = screen(terminal=False)
    with Progress(TASKS, 1000, console=out, plain_seconds=1.0) as progress:
        turns = ((0, 0, 2), (10, 0, 2), (15, 8, 60), (20, 16, 1), (21, 16, 9), (40, 24, 0))
        for decisions, made, passed in turns:
            progress.update(decisions=decisions, updates=begun + made)
            clock[0] += passed  # the second call waits a minute for the first to be compiled
    told = [line.partition(" gone, ")[2] for line in out.file.getvalue().splitlines()]
    assert [line.partition(" |")[0] for line in told] == 4 * ["– left"] + ["0:08:00 left"]


def test_a_terminal_shows_the_best_evaluation_and_the_target():
    out = screen(terminal=True)
    with Progress(TASKS, 1000, console=out) as progress:
        progress.update(decisions=10, updates=5, returns={"dmc/cheetah-run": 12.0})
        progress.evaluated({"toy/catch": 3.5, "dmc/cheetah-run": 77.0})
        progress.evaluated({"toy/catch": 1.5})
        progress.message("a line that stays [not markup]")
    shown = out.file.getvalue()
    assert "550.0" in shown  # cheetah's target
    assert "77.0" in shown
    assert "[not markup]" in shown


def test_scores_show_a_dash_where_there_is_no_number():
    out = screen(terminal=False)
    print_scores(
        TASKS, {"toy/catch": 5.0, "dmc/cheetah-run": nan}, path=Path("runs/x"), console=out
    )
    shown = out.file.getvalue()
    assert "1.000" in shown
    assert "–" in shown
    assert "run directory: runs/x" in shown


def test_times_are_for_people():
    assert console.clock(3725.2) == "1:02:05"
    assert console.clock(nan) == "–"
