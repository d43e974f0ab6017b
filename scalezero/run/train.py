"""What happens, in which order, while a run trains?"""

import json
import time
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalezero.agent.learner import Learner, learner, update_many
from scalezero.agent.losses import Metrics
from scalezero.agent.optimiser import optimiser
from scalezero.agent.records import Batch, Observation
from scalezero.config import Config
from scalezero.data.mixture import Batches, Mixture
from scalezero.run.build import replays_of, tasks_of, world_of
from scalezero.run.checkpoint import Checkpoints, journals_of
from scalezero.run.collect import Collector
from scalezero.run.console import Progress, print_scores
from scalezero.run.evaluate import Evaluation, Evaluator
from scalezero.run.folder import RunError, RunFolder, write
from scalezero.run.logs import JsonLines, TensorBoard, plain

RECENT = 16  # training episodes of a task that its shown return averages


def batch_of(batches: Batches) -> Batch:
    """What a mixture sampled, for the learner."""
    names = ("action", "candidates", "policy", "valid", "reward", "ending", "known")
    seen = Observation(jnp.asarray(batches.vector), jnp.asarray(batches.image))
    return Batch(observation=seen, **{name: jnp.asarray(getattr(batches, name)) for name in names})


class Run:
    """A run between its start and its end: everything with state, and one turn of the loop."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Make everything anew, or bring back what `folder` holds."""
        self.config, self.folder = config, folder
        self.tasks = tasks_of(config)
        self.replays = replays_of(config)
        self.mixture = Mixture(self.replays)
        self.rng = np.random.default_rng(config.seed)
        self.key = jax.random.key(config.seed)
        total = round(config.run.decisions * config.learn.replay_ratio)
        self.rule = optimiser(config.learn, total)
        self.state: Learner = learner(world_of(config), self.rule, key=jax.random.key(config.seed))
        self.turns = 0
        self.updates = 0
        self.evaluations = 0  # how many were made
        self.seconds = 0.0  # of training in earlier starts
        self.began = time.monotonic()
        self.journals = journals_of(folder.replay, self.replays)
        with ExitStack() as opened:  # what was opened is closed again if the rest fails
            keep = lambda thing: opened.enter_context(closing(thing))
            self.checkpoints = keep(Checkpoints(folder.checkpoints, config.run.keep))
            self.logs = {
                name: keep(JsonLines(getattr(folder, name)))
                for name in ("metrics", "episodes", "events")
            }
            if self.checkpoints.latest is not None:
                self._restore(self.checkpoints.latest)
            self.thread = opened.enter_context(ThreadPoolExecutor(1, "learner"))
            self.board = keep(TensorBoard(folder.tensorboard, int(self.decisions)))
            self.collector = keep(Collector(self.tasks, self.state.world, config, self.replays))
            numbers = range(len(self.tasks))
            self.evaluator = keep(Evaluator(self.tasks, numbers, config, seed=config.seed))
            self._opened = opened.pop_all()
        self.recent = defaultdict(lambda: deque(maxlen=RECENT))
        self.actor = self.state.world  # plans; behind `state.world` by the updates under way
        self.learning: Future[tuple[Learner, Metrics]] | None = None
        self.sums: list[dict[str, np.ndarray]] = []  # metrics since the last line

    @property
    def decisions(self) -> float:
        """Decisions of each task so far, averaged over tasks."""
        return sum(replay.decisions for replay in self.replays) / len(self.replays)

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all starts."""
        return self.seconds + time.monotonic() - self.began

    def turn(self) -> None:
        """One decision in half of the environments, and the updates it is worth."""
        for episode in self.collector.turn(self.actor, self.turns, key=self.key):
            self.recent[episode.task].append(episode.score)
            self.logs["episodes"].write({"decisions": self.decisions, **vars(episode)})
        self.turns += 1
        due = self.config.learn.replay_ratio * (self.decisions - self.config.data.warmup_decisions)
        each = self.config.learn.updates_per_call
        while self.updates + each <= due:
            self.learn(each)

    def evaluate(self, episodes: int) -> Evaluation:
        """Play episodes without exploration, and write down how they went."""
        self.settle()
        self.actor = self.state.world
        key = jax.random.fold_in(jax.random.key(self.config.seed + 1), self.evaluations)
        result = self.evaluator.play(self.state.world, episodes, key=key)
        self.evaluations += 1
        past = self.folder.evaluations
        lines = json.loads(past.read_text()) if past.exists() else []
        lines.append(
            {
                "decisions": self.decisions,
                "updates": self.updates,
                "seconds": self.elapsed,
                **result.as_json(),
            }
        )
        write(past, json.dumps(plain(lines), indent=1) + "\n")
        means = {f"evaluation/{name}": mean for name, mean in result.means.items()}
        self.board.write(means, int(self.decisions))
        return result

    def log(self) -> None:
        """Write a line of metrics: the means since the last one."""
        self.settle()
        line: dict[str, Any] = {
            "decisions": self.decisions,
            "updates": self.updates,
            "seconds": self.elapsed,
        }
        for name in self.sums[0] if self.sums else ():
            mean = np.mean([each[name] for each in self.sums], axis=0)
            for task, value in zip(self.tasks, mean, strict=True):
                line[f"{task.name}/{name}"] = float(value)
        for task, scores in self.recent.items():
            line[f"{task}/return"] = float(np.mean(scores))
        self.sums = []
        self.logs["metrics"].write(line)
        self.board.write(line, int(self.decisions))

    def save(self) -> None:
        """Write a checkpoint of everything; what it does not need any more is deleted after."""
        self.settle()
        notes = {
            "turns": self.turns,
            "updates": self.updates,
            "evaluations": self.evaluations,
            "seconds": self.elapsed,
            "rng": self.rng.bit_generator.state,
            "logs": {name: log.offset for name, log in self.logs.items()},
            "shards": [
                list(journal.save(replay))
                for journal, replay in zip(self.journals, self.replays, strict=True)
            ],
        }
        self.checkpoints.save(self.turns, self.state, notes)
        kept = [each["shards"] for each in self.checkpoints.all_notes()]
        for number, journal in enumerate(self.journals):
            journal.prune(name for shards in kept for name in shards[number])

    def close(self) -> None:
        """Stop environments and close files."""
        self._opened.close()

    def learn(self, count: int) -> None:
        """Start `count` updates on what is remembered; they run beside the next decisions."""
        self.settle()
        learn = self.config.learn
        task = np.arange(len(self.tasks))
        sampled = self.mixture.sample(task, learn.rows, learn.unroll, learn.n_step, count, self.rng)
        slots = jnp.asarray(np.broadcast_to(task, (count, len(task))))
        self.actor = self.state.world
        self.learning = self.thread.submit(
            update_many, self.state, batch_of(sampled), slots, learn, self.rule
        )
        self.updates += count

    def settle(self) -> None:
        """Wait for the updates under way, and stop at a loss that is not a number."""
        if self.learning is None:
            return
        self.state, metrics = self.learning.result()
        self.learning = None
        metrics = jax.device_get(metrics)
        for task, total in zip(self.tasks, metrics["loss/total"], strict=True):
            if not np.isfinite(total):
                raise RunError(
                    f"{task.name}: the loss is {total} at update {self.updates:,} "
                    f"({self.decisions:,.0f} decisions); the last checkpoint is from before: go on "
                    "from it with a smaller learn.learning_rate in a new run"
                )
        self.sums.append(metrics)

    def _restore(self, step: int) -> None:
        notes = self.checkpoints.notes(step)
        self.state = self.checkpoints.restore(step, self.state)
        for journal, replay, shards in zip(
            self.journals, self.replays, notes["shards"], strict=True
        ):
            journal.restore(replay, shards)
        self.rng.bit_generator.state = notes["rng"]
        for name, offset in notes["logs"].items():
            self.logs[name].truncate(offset)
        self.turns, self.updates = notes["turns"], notes["updates"]
        self.evaluations, self.seconds = notes["evaluations"], notes["seconds"]


def train(config: Config, folder: RunFolder) -> Evaluation:
    """Train until `run.decisions`, or go on with what `folder` holds; the last evaluation.

    Raises:
        RunError: The run cannot go on; what was saved stays.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was saved.
    """
    run = Run(config, folder)
    progress = Progress(run.tasks, config.run.decisions)
    run.logs["events"].write({"event": "start", "decisions": run.decisions, "time": time.time()})
    try:
        with progress:
            if run.board.problem:
                progress.message(run.board.problem)
            _loop(run, progress)
        result = run.evaluate(config.run.final_episodes)
        run.save()
    except KeyboardInterrupt:
        run.save()
        raise
    except OSError as error:
        raise RunError(
            f"{folder.path}: cannot be written: {error}; free some room and give the same command"
        ) from error
    finally:
        run.close()
    print_scores(run.tasks, result.means, path=Path(folder.path))
    return result


def _loop(run: Run, progress: Progress) -> None:
    settings = run.config.run
    next_log = run.decisions + settings.log_every
    every = settings.evaluate_every
    next_evaluation = (run.decisions // every + 1) * every
    saved = time.monotonic()
    while run.decisions < settings.decisions:
        run.turn()
        if run.decisions >= next_log:
            next_log += settings.log_every
            run.log()
        progress.update(
            decisions=int(run.decisions),
            updates=run.updates,
            returns={task: float(np.mean(scores)) for task, scores in run.recent.items()},
        )
        if next_evaluation <= run.decisions < settings.decisions:
            next_evaluation += every
            progress.evaluated(run.evaluate(settings.evaluation_episodes).means)
        if time.monotonic() - saved > 60 * settings.save_minutes:
            run.save()
            saved = time.monotonic()
            run.logs["events"].write({"event": "saved", "decisions": run.decisions})
