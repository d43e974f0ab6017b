"""The whole loop, as a run goes through it: decisions, updates, and both beside each other."""

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from scalezero.bench.measure import FEWEST, Measurement, timing
from scalezero.config import Config
from scalezero.run.build import groups_of, rows_of
from scalezero.run.folder import RunFolder
from scalezero.run.run import TIMED, Run


def collection(config: Config, seconds: float) -> Iterator[Measurement]:
    """Decisions without learning: search, environments, replay and everything between them."""
    with _run(config) as run:
        yield _collected(run, seconds)


def end_to_end(config: Config, seconds: float, *, both: bool) -> Iterator[Measurement]:
    """Decisions alone, then updates alone on what these left, then `both` as a run makes them."""
    with _run(config) as run:
        yield _collected(run, seconds)
        yield _learnt(run, seconds)
        if both:
            yield _trained(run, seconds)


@contextmanager
def _run(config: Config) -> Iterator[Run]:
    """A run in a folder of its own, which is gone afterwards; it plans from the first decision."""
    data = config.data.model_copy(update={"warmup_decisions": 0})
    config = config.model_copy(update={"data": data})
    with tempfile.TemporaryDirectory(prefix="scalezero-bench-") as folder:
        run = Run(config, RunFolder.open(Path(folder) / "run", config))
        try:
            yield run
        finally:
            run.close()


def _collected(run: Run, seconds: float) -> Measurement:
    """Turns in which nothing is learnt; a window of all that training asks for is there after."""
    learn, rows = run.config.learn, len(run.tasks) * rows_of(run.config)
    given = {"at_random": False, "key": run.act_key}
    turn = lambda: run.collector.turn(run.actor.world, run.turns, **given)
    took: list[float] = []
    before = 0.0, 0.0
    fewest = 2 * (learn.unroll + learn.n_step + 2)  # decisions in every environment
    ready = lambda: all(replay.starts for replay in run.replays)
    while len(took) < max(FEWEST, fewest) or sum(took) < seconds or not ready():
        began = time.perf_counter()
        turn()
        run.turns += 1
        if run.turns > 4:  # both groups have been through everything that compiles
            took.append(time.perf_counter() - began)
        else:
            before = _waited(run), run.busy.seconds
    notes = _shares(run, before, sum(took))
    # Two groups whose environments cost more than the search take turns that last unequally long.
    groups = groups_of(run.config)
    rounds = [sum(turns) / groups for turns in itertools.batched(took, groups)]
    return Measurement("decide", timing(rounds), rows, "decisions", notes=notes)


def _learnt(run: Run, seconds: float) -> Measurement:
    """Updates on what was just collected, sampling and transfer included.

    No search follows, so no weights are made ready for one.
    """
    learn, count = run.config.learn, run.config.learn.updates_per_call
    took: list[float] = []
    given, run.given = run.given, np.full_like(run.given, -1e9)  # no task has had its share
    for _ in range(3):  # the third waits for the second, as those that follow do
        run.learn(count)
    while len(took) < FEWEST or sum(took) < seconds:
        began = time.perf_counter()
        run.learn(count)  # returns when the call before has ended
        took.append(time.perf_counter() - began)
    windows = count * int(run.taught.sum()) * learn.rows
    run.settle()
    run.given = given
    last = min(len(took), TIMED - 1)
    busy = count * sum(list(run.durations)[-last - 1 : -1])  # of those that were waited for
    notes = {
        "updates_per_second": count / statistics.median(took),
        "share_learner_idle": max(0.0, 1 - busy / sum(took[-last:])),
    }
    return Measurement("learn", timing(took), windows, "windows", notes=notes)


def _trained(run: Run, seconds: float) -> Measurement:
    """Turns and the updates they are worth, beside each other; each time is a mean over many."""
    rows = len(run.tasks) * rows_of(run.config)
    # So each turn earns its updates at once, and no others.
    run.updates = math.floor(run.decisions * run.config.learn.replay_ratio)
    began, updates = time.perf_counter(), run.updates
    before = _waited(run), run.busy.seconds
    took: list[float] = []
    for _ in range(FEWEST):
        start, turns = time.perf_counter(), 0
        while not turns or turns % 2 or time.perf_counter() - start < seconds / FEWEST:
            run.turn()
            turns += 1
        took.append((time.perf_counter() - start) / turns)
    run.settle()
    passed = time.perf_counter() - began
    notes = _shares(run, before, passed)
    notes["updates_per_second"] = (run.updates - updates) / passed
    return Measurement("train", timing(took), rows, "decisions", notes=notes)


def _waited(run: Run) -> float:
    return run.collector.metrics()["waited"]


def _shares(run: Run, before: tuple[float, float], passed: float) -> dict[str, float]:
    """Of the seconds that `passed` since `_waited` and `busy` were noted, those without work."""
    waited, busy = before
    return {
        "share_waiting_for_environments": (_waited(run) - waited) / passed,
        "share_device_idle": max(0.0, 1 - (run.busy.seconds - busy) / passed),
    }
