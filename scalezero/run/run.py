"""What has a run, and what can it do? Everything with state, between its start and its end."""

import json
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalezero.agent.curriculum import (
    advanced,
    curriculum,
    curriculum_of,
    judged,
    reason_to_grow,
)
from scalezero.agent.learner import Learner, grown, update_many
from scalezero.config import Config
from scalezero.data.mixture import Mixture
from scalezero.envs.spec import Text
from scalezero.run import build, inputs
from scalezero.run.actor import Actor
from scalezero.run.check import moving, sizes_of
from scalezero.run.checkpoint import Checkpoints, journals_of
from scalezero.run.collect import Collector, batch_of, slots_of
from scalezero.run.evaluate import Evaluation, Evaluator
from scalezero.run.folder import RunError, RunFolder, write
from scalezero.run.logs import JsonLines, TensorBoard, plain
from scalezero.run.pace import Busy, Mark, memory, rates
from scalezero.run.texts import Texts

RECENT = 16  # training episodes of a task that its shown return averages
TIMED = 64  # calls of which the median is the time of an update


class Run:
    """A run between its start and its end: everything with state, and one turn of the loop."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        """Make everything anew, or bring back what `folder` holds."""
        self.config, self.folder = config, folder
        self.tasks = build.tasks_of(config)
        self.replays = build.replays_of(config)
        self.slow = np.array([isinstance(task.observation, Text) for task in self.tasks])
        self.mixture = Mixture(self.replays)
        self.rng = np.random.default_rng(config.seed)
        _, self.act_key, self.evaluate_key = build.keys_of(config)
        self.rule = build.optimiser_of(config)
        self.curriculum = curriculum(len(self.tasks))
        self.slots = slots_of(self.tasks, self.curriculum.solved, config.dps.freed)
        self.turns = self.updates = self.evaluations = 0
        self.given = np.zeros(len(self.tasks))  # slots of batches that held each task
        self.dealt = (0.0, 0)  # decisions of a slot, and what `_clock` said, when slots were dealt
        self.next_evaluation = config.run.evaluate_every
        self.seconds = 0.0  # of training in earlier starts
        self.began = time.monotonic()
        self.finished = False  # the last evaluation was made; a longer run has another one
        self.journals = journals_of(folder.replay, self.replays)
        told = lambda why: self.note("texts", why=why)
        self.texts = Texts(config, self.tasks, folder.texts, told)
        self.busy = Busy()
        with ExitStack() as opened:  # what was opened is closed again if the rest fails
            keep = lambda thing: opened.enter_context(closing(thing))
            opened.enter_context(folder.lock())
            self.checkpoints = keep(Checkpoints(folder.checkpoints, config.run.keep))
            self.checkpoints.sweep()
            self.logs = {
                name: keep(JsonLines(getattr(folder, name)))
                for name in ("metrics", "episodes", "events")
            }
            self._restore(self.checkpoints.latest)
            self.thread = opened.enter_context(ThreadPoolExecutor(1, "learner"))
            self.board = keep(TensorBoard(folder.tensorboard, int(self.decisions)))
            self.collector = self._collector()
            opened.callback(lambda: self.collector.close())
            numbers = range(len(self.tasks))
            self.evaluator = keep(
                Evaluator(self.tasks, numbers, config, self.texts, seed=config.seed)
            )
            self._opened = opened.pop_all()
        self.recent = defaultdict(lambda: deque(maxlen=RECENT))
        self.actor = Actor(self.state.world)  # plans; behind `state.world` by the updates under way
        self.compiling: Future[None] | None = None
        self.learning: Future[tuple[Any, np.ndarray]] | None = None
        self.durations: deque[float] = deque(maxlen=TIMED)  # seconds of the latest updates
        self.taught = np.zeros(len(self.tasks), int)  # slots of each task in the latest batches
        self.sums: list[dict[str, np.ndarray]] = []  # metrics since the last line
        self.mark = self._mark()  # when the last line of metrics was written

    @property
    def interactions(self) -> int:
        """Decisions of all tasks so far."""
        return sum(replay.decisions for replay in self.replays)

    @property
    def decisions(self) -> float:
        """Decisions so far of each slot of environments, averaged over those that did not rest.

        Without dynamic parameter scaling: of each task. Games of text, which may fall behind, do
        not count beside others.
        """
        decisions, made = self.dealt
        slots, now = self._clock()
        return decisions + (now - made) / slots

    def _clock(self) -> tuple[int, int]:
        """The slots that set the pace, and the decisions ever made in their kinds of tasks."""
        active = [slot for slot in self.slots if slot.active]
        quick = [slot for slot in active if not self.slow[slot.number]]
        made = np.array([replay.decisions for replay in self.replays])
        return len(quick or active), int(made[~self.slow].sum() if quick else made.sum())

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all starts."""
        return self.seconds + time.monotonic() - self.began

    def turn(self) -> dict[str, float]:
        """One decision in a group of environments, and the updates it is worth.

        Returns:
            For each task with an episode that ended: the mean score of its last few.
        """
        if self.compiling is None:  # beside the first decisions, so that no update waits for it
            given = self.config, self.state, self.texts.contents(), self.rule
            self.compiling = self.thread.submit(inputs.compile_updates, *given)
        ended, learn, warmup = set(), self.config.learn, self.config.data.warmup_decisions
        how = {"at_random": self.decisions < warmup, "key": self.act_key}
        for episode in self.collector.turn(self.actor.world, self.turns, **how):
            self.recent[episode.task].append(episode.score)
            ended.add(episode.task)
            self.logs["episodes"].write({"decisions": self.decisions, **vars(episode)})
        self.turns += 1
        due = learn.replay_ratio * (self.decisions - warmup)
        begun = all(replay.starts for replay in self.replays)
        while begun and self.updates + learn.updates_per_call <= due:
            self.learn(learn.updates_per_call)
            if reason_to_grow(self.curriculum, self.updates, self.config.dps):
                break  # what is still due is the next stage's
        return {task: float(np.mean(self.recent[task])) for task in ended}

    def evaluate(self, episodes: int, between: Callable[[], None]) -> Evaluation:
        """Play episodes without exploration, and write down how they went."""
        self.settle()
        key = jax.random.fold_in(self.evaluate_key, self.evaluations)
        with self.busy.working():
            result = self.evaluator.play(self.state.world, episodes, key=key, between=between)
        lines = self.folder.evaluated()[: self.evaluations]  # a killed start may have more
        lines.append(
            {
                "decisions": self.decisions,
                "updates": self.updates,
                "seconds": self.elapsed,
                "interactions": self.interactions,
                "interactions_by_task": self._by_task(),
                "stage": self.curriculum.stage,
                **result.as_json(),
            }
        )
        write(self.folder.evaluations, json.dumps(plain(lines), indent=1) + "\n")
        self.evaluations += 1
        means = {f"evaluation/{name}": mean for name, mean in result.means.items()}
        self.board.write(means, int(self.decisions))
        return result

    def judge(self, result: Evaluation) -> tuple[str, ...]:
        """Let solved tasks go, and reopen those that slipped; what was decided, in words."""
        self.curriculum, said = judged(self.curriculum, self.tasks, result.returns, self.config.dps)
        for text in said:
            self.note("curriculum", why=text, interactions=self._by_task())
        if said:
            decisions = self.decisions
            self.sums = []  # means over tasks that rest and that learn would say nothing
            self.recent.clear()
            self.collector.close()  # episodes under way are dropped, as after a resume
            self.collector = self._collector()
            self.dealt = (decisions, self._clock()[1])
        return said

    def grow(self) -> tuple[str, ...]:
        """Go on to the next stage if it is time to; what was decided, in words."""
        why = reason_to_grow(self.curriculum, self.updates, self.config.dps)
        if why is None:
            return ()
        self.settle()
        before = self._sizes()
        growth = build.growth_of(self.config, self.curriculum.stage)
        self.state = grown(self.state, self.rule, growth)
        jax.clear_caches()  # of updates that none will ask for; the search is loaded again
        self.actor = Actor(self.state.world)
        self.curriculum = advanced(self.curriculum, self.updates)
        said = f"stage {self.curriculum.stage} at update {self.updates:,}: {why}"
        self.note(
            "stage", why=said, interactions=self._by_task(), before=before, after=self._sizes()
        )
        self.durations.clear()
        return (said,)

    @property
    def _update_seconds(self) -> float | None:
        return statistics.median(self.durations) if self.durations else None

    def _sizes(self) -> dict[str, Any]:
        """Of the model as it is; its updates have no time until one was made."""
        return vars(sizes_of(self.state, moving(self.state.world), self._update_seconds))

    @property
    def all_solved(self) -> bool:
        """Whether nothing is left to learn, and the run ends for it."""
        dps = self.config.dps
        return dps.on and all(self.curriculum.solved) and (dps.end or dps.freed == "stop")

    def log(self) -> None:
        """Write a line of metrics: where the run stands, and means since the last line."""
        self.settle()
        now = self._mark()
        line: dict[str, Any] = {
            "decisions": self.decisions,
            "updates": self.updates,
            "seconds": now.seconds,
            "interactions": self.interactions,
            "stage": self.curriculum.stage,
            "update_seconds": self._update_seconds,
            **rates(self.mark, now),
            **memory(),
            **{f"{name}/decisions": count for name, count in now.made.items()},
            **self.texts.metrics(),
            **self.collector.metrics(),
        }
        self.mark = now
        taught = np.array([each.pop("taught") > 0 for each in self.sums])
        for name in self.sums[0] if self.sums else ():
            values = np.array([each[name] for each in self.sums])
            for number, task in enumerate(self.tasks):
                if np.any(taught[:, number]):
                    line[f"{task.name}/{name}"] = float(values[taught[:, number], number].mean())
        for task, scores in self.recent.items():
            line[f"{task}/return"] = float(np.mean(scores))
        self.sums = []
        self.logs["metrics"].write(line)
        self.board.write(line, int(self.decisions))

    def save(self) -> None:
        """Write a checkpoint of everything; what it does not need any more is deleted after."""
        self.settle()
        self.note("saved")
        notes = {
            "turns": self.turns,
            "updates": self.updates,
            "evaluations": self.evaluations,
            "finished": self.finished,
            "until": self.config.run.decisions,
            "curriculum": self.curriculum.as_json(),
            "dealt": list(self.dealt),
            "next_evaluation": self.next_evaluation,
            "seconds": self.elapsed,
            "rng": self.rng.bit_generator.state,
            "logs": {name: log.offset for name, log in self.logs.items()},
            "given": self.given.tolist(),
            "texts": list(self.texts.save()),
            "shards": [
                list(journal.save(replay))
                for journal, replay in zip(self.journals, self.replays, strict=True)
            ],
        }
        # Evaluations make no turns, but what they say is to be saved too.
        self.checkpoints.save(self.turns + self.evaluations, self.state, notes)
        kept = [each["shards"] for each in self.checkpoints.all_notes()]
        for number, journal in enumerate(self.journals):
            journal.prune(name for shards in kept for name in shards[number])

    def note(self, event: str, **more: Any) -> None:
        """Write a line of something that happens once."""
        line = {"event": event, "decisions": self.decisions, "updates": self.updates, **more}
        self.logs["events"].write({**line, "time": time.time()})

    def close(self) -> None:
        """Stop environments and close files."""
        self._opened.close()

    def learn(self, count: int) -> None:
        """Start `count` updates on what is remembered; they run beside the next decisions."""
        learn = self.config.learn
        task, rests = self._deal()
        sampled = self.mixture.sample(
            task, learn.rows, learn.unroll, learn.n_step, learn.recent, count, self.rng
        )
        sampled.known[:, rests] = False  # so they weigh nothing, and shapes stay
        slots = jnp.asarray(np.broadcast_to(task, (count, len(task))))
        batches = batch_of(sampled)
        self.settle()
        self.actor = Actor(self.state.world)
        self.learning = self.thread.submit(
            self._updated, self.taught, self.state, batches, slots, self.texts.contents()
        )
        self.updates += count

    def _updated(self, taught: np.ndarray, *given: Any) -> tuple[Any, np.ndarray]:
        if self.compiling is not None:
            self.compiling.result()  # has ended in this same thread, or failed
        began = time.perf_counter()
        with self.busy.working():
            made = update_many(*given, self.config.learn, self.rule)
            jax.block_until_ready(made[1])
        passed = time.perf_counter() - began
        self.durations.append(passed / self.config.learn.updates_per_call)
        return made, taught

    def _deal(self) -> tuple[np.ndarray, np.ndarray]:
        """The task of every slot of the next batches, and which slots rest.

        Games of text may fall behind: these get as many updates as their own decisions earned.
        """
        share = self.config.dps.freed == "share"
        weights = 1.0 - self._rests() if share else np.ones(len(self.tasks))
        made = np.array([replay.decisions for replay in self.replays])
        learn, warmup = self.config.learn, self.config.data.warmup_decisions
        owed = np.maximum(learn.replay_ratio * (made - warmup) - self.given, 0) * ~self._rests()
        weights = np.where(self.slow, weights * owed, weights)
        task = self.mixture.spread(weights, len(self.tasks), self.rng)
        rests = (self._rests() | self.slow & (owed == 0))[task]
        self.taught = np.bincount(task[~rests], minlength=len(self.tasks))
        self.given += learn.updates_per_call * self.taught
        return task, rests

    def _rests(self) -> np.ndarray:
        """Which tasks are left alone: the solved ones, unless all are and training goes on."""
        solved = np.array(self.curriculum.solved)
        return solved & ~np.all(solved)

    def _collector(self) -> Collector:
        """Environments for the tasks that are not solved."""
        self.slots = slots_of(self.tasks, self.curriculum.solved, self.config.dps.freed)
        shared = self.config, self.replays, self.texts, self.busy
        return Collector(self.slots, self.state.world, *shared, self.turns)

    def _mark(self) -> Mark:
        return Mark(self.elapsed, self.updates, self._by_task(), self.busy.seconds)

    def _by_task(self) -> dict[str, int]:
        """Decisions of each task so far."""
        return {replay.task.name: replay.decisions for replay in self.replays}

    def settle(self) -> None:
        """Wait for the updates under way, and stop at a loss that is not a number."""
        if self.learning is None:
            return
        (self.state, metrics), taught = self.learning.result()
        self.learning = None
        metrics = jax.device_get(metrics)
        sound, count = metrics.pop("sound"), self.config.learn.updates_per_call
        if np.min(sound) < count or not np.all(np.isfinite(metrics["gradient/norm"])):
            first = np.min(sound)
            named = [t.name for t, each in zip(self.tasks, sound, strict=True) if each == first]
            at = self.updates - count + min(int(first) + 1, count)
            self.note("not finite", tasks=named, update=at)
            raise RunError(
                f"{', '.join(named)}: the loss or its gradient is not finite at update {at:,} "
                f"({self.decisions:,.0f} decisions); nothing was saved since "
                f"{self.folder.checkpoints}/{self.checkpoints.latest}, which is sound; "
                "try a smaller learn.learning_rate in a new run"
            )
        self.sums.append(metrics | {"taught": taught})

    def _restore(self, step: int | None) -> None:
        self.state: Learner
        if step is None:  # whatever an earlier start wrote, it saved nothing to go on from
            self.state = build.learner_of(self.config, self.rule)
            for log in self.logs.values():
                log.truncate(0)
            return
        notes = self.checkpoints.notes(step)
        if "shards" not in notes:
            raise RunError(
                f"{self.folder.path}: is an exported agent, which has no replay and no optimiser "
                "to go on with; train in the run it is from"
            )
        self.curriculum = curriculum_of(notes["curriculum"])
        self.slots = slots_of(self.tasks, self.curriculum.solved, self.config.dps.freed)
        self.dealt = tuple(notes["dealt"])
        self.next_evaluation = notes["next_evaluation"]
        shaped = build.learner_shape(self.config, self.rule, self.curriculum.stage)
        self.state = self.checkpoints.restore(step, shaped)
        for journal, replay, shards in zip(
            self.journals, self.replays, notes["shards"], strict=True
        ):
            journal.restore(replay, shards)
        self.texts.restore(notes.get("texts", ()))
        self.given = np.array(notes.get("given", self.given))
        self.rng.bit_generator.state = notes["rng"]
        for name, offset in notes["logs"].items():
            self.logs[name].truncate(offset)
        self.turns, self.updates = notes["turns"], notes["updates"]
        self.evaluations, self.seconds = notes["evaluations"], notes["seconds"]
