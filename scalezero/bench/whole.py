"""The whole loop, as a run goes through it: decisions, updates, and both beside each other."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scalezero.bench.measure import FEWEST, Measurement, timing
from scalezero.config import Config
from scalezero.run.folder import RunFolder
from scalezero.run.run import Run


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
    """A run in a folder of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="scalezero-bench-") as folder:
        run = Run(config, RunFolder.open(Path(folder) / "run", config))
        try:
            yield run
        finally:
            run.close()


def _collected(run: Run, seconds: float) -> Measurement:
    """Turns in which nothing is learnt; a window of all that training asks for is there after."""
    learn, half = run.config.learn, len(run.tasks) * run.config.data.envs // 2
    turn = lambda: run.collector.turn(run.actor, run.turns, key=run.act_key)
    took: list[float] = []
    waited = 0.0
    fewest = 2 * (learn.unroll + learn.n_step + 2)  # decisions in every environment
    while len(took) < max(FEWEST, fewest) or sum(took) < seconds:
        began = time.perf_counter()
        turn()
        run.turns += 1
        if run.turns > 4:  # both halves have been through everything that compiles
            took.append(time.perf_counter() - began)
        else:
            waited = -_waited(run)
    notes = {"share_waiting_for_environments": (waited + _waited(run)) / sum(took)}
    # Turns alternate between halves whose environments may cost more than the search: the mean
    # of pairs is what a decision costs.
    pairs = [sum(pair) / 2 for pair in zip(took[::2], took[1::2], strict=False)]
    return Measurement("decide", timing(pairs), half, "decisions", notes=notes)


def _learnt(run: Run, seconds: float) -> Measurement:
    """Updates on what was just collected, sampling and transfer included."""
    learn, count = run.config.learn, run.config.learn.updates_per_call
    took: list[float] = []
    for _ in range(2):
        run.learn(count)
    run.settle()
    while len(took) < FEWEST or sum(took) < seconds:
        began = time.perf_counter()
        run.learn(count)  # returns when the call before has ended, so calls follow on each other
        took.append(time.perf_counter() - began)
    run.settle()
    took = took[1:]  # the first had nothing to wait for
    windows = count * len(run.tasks) * learn.rows
    notes = {
        "updates_per_second": count / statistics.median(took),
        "share_learner_idle": 1 - sum(list(run.durations)[-len(took) :]) * count / sum(took),
    }
    return Measurement("learn", timing(took), windows, "windows", notes=notes)


def _trained(run: Run, seconds: float) -> Measurement:
    """Turns and the updates they are worth, beside each other; each time is a mean over many."""
    settings, half = run.config, len(run.tasks) * run.config.data.envs // 2
    owed = (run.decisions - settings.data.warmup_decisions) * settings.learn.replay_ratio
    run.updates = max(0, int(owed))  # those that were skipped are not made up for
    began, before, waited = time.perf_counter(), run.updates, _waited(run)
    took: list[float] = []
    for _ in range(FEWEST):
        start, turns = time.perf_counter(), 0
        while not turns or turns % 2 or time.perf_counter() - start < seconds / FEWEST:
            run.turn()
            turns += 1
        took.append((time.perf_counter() - start) / turns)
    run.settle()
    passed = time.perf_counter() - began
    notes = {
        "updates_per_second": (run.updates - before) / passed,
        "share_waiting_for_environments": (_waited(run) - waited) / passed,
    }
    return Measurement("train", timing(took), half, "decisions", notes=notes)


def _waited(run: Run) -> float:
    return run.collector.metrics()["waited"]
