"""What happens, in which order, while a run trains?"""

import time
from pathlib import Path

from rich.console import Console

from scalezero.config import Config
from scalezero.envs.pool import EnvironmentDied
from scalezero.run import compiled
from scalezero.run.build import tasks_of
from scalezero.run.checkpoint import Checkpoints
from scalezero.run.console import Progress, print_scores
from scalezero.run.evaluate import Evaluation, evaluation_of
from scalezero.run.folder import RunError, RunFolder
from scalezero.run.pace import memory
from scalezero.run.run import Run
from scalezero.run.stop import Stop


def train(config: Config, folder: RunFolder) -> Evaluation:
    """Train until `run.decisions`, or go on with what `folder` holds; the last evaluation.

    Raises:
        RunError: The run cannot go on; what was saved stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was saved.
    """
    result = result_of(config, folder)
    if result is None:
        say = "making the run; what is new to this machine is compiled, which takes about a minute"
        compiled.keep()
        Console().print(f"{folder.path}: {say}", highlight=False, markup=False, soft_wrap=True)
        run = Run(config, folder)
        try:
            result = _train(run)
        finally:
            run.close()
    print_scores(result.tasks, result.means, path=Path(folder.path))
    return result


def _train(run: Run) -> Evaluation:
    progress = Progress(run.tasks, run.config.run.decisions)
    run.note("start", precision=run.state.world.precision)
    try:
        with Stop() as stop, progress:
            if run.board.problem:
                progress.message(run.board.problem)
            _loop(run, progress, stop)
            progress.message(f"last evaluation: {run.config.run.final_episodes} episodes each")
            result = run.evaluate(run.config.run.final_episodes, stop.check)
            run.finished = True
            run.save()
            run.note("end", **memory())
    except KeyboardInterrupt:
        run.save()
        raise
    except EnvironmentDied as error:
        run.save()
        raise RunError(f"{error}; saved at {run.decisions:,.0f} decisions of each task") from error
    except OSError as error:
        raise RunError(
            f"{run.folder.path}: cannot be written: {error}; free some room and give the same "
            "command"
        ) from error
    return result


def _over(run: Run) -> bool:
    """Whether the run has come to its end: it was long enough, or nothing is left to learn."""
    limits = run.config.run
    pairs = (
        (run.decisions, limits.decisions),
        (run.updates, limits.updates),
        (run.interactions, limits.interactions),
    )
    return run.all_solved or any(limit is not None and made >= limit for made, limit in pairs)


def _loop(run: Run, progress: Progress, stop: Stop) -> None:
    settings = run.config.run
    next_log = run.decisions + settings.log_every
    saved = time.monotonic()
    while not _over(run):
        stop.check()
        ended = run.turn()
        for text in run.grow():
            progress.message(text)
        if run.decisions >= next_log:
            next_log += settings.log_every
            run.log()
        progress.update(
            decisions=int(run.decisions),
            interactions=run.interactions,
            updates=run.updates,
            returns=ended,
        )
        if run.next_evaluation <= run.decisions and not _over(run):
            episodes = settings.evaluation_episodes
            result = run.evaluate(episodes, stop.check)
            progress.evaluated(result.means)
            if run.config.dps.on:
                for text in run.judge(result):
                    progress.message(text)
            run.next_evaluation += settings.evaluate_every
        if time.monotonic() - saved > 60 * settings.save_minutes:
            run.save()
            saved = time.monotonic()


def result_of(config: Config, folder: RunFolder) -> Evaluation | None:
    """The last evaluation of a run that has come to its end; None while there is more to do."""
    checkpoints = Checkpoints(folder.checkpoints, config.run.keep)
    try:
        step = checkpoints.latest
        notes = {} if step is None else checkpoints.notes(step)
    finally:
        checkpoints.close()
    if not notes.get("finished") or config.run.decisions > notes["until"]:
        return None
    return evaluation_of(tasks_of(config), folder.evaluated()[notes["evaluations"] - 1])
