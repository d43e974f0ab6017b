"""How experience is gathered: environments in groups that take turns."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalezero.agent.act import act, act_at_random, empty_history
from scalezero.agent.records import Batch, History, Observation, Plan
from scalezero.agent.tasks import TaskTable
from scalezero.agent.world import World
from scalezero.config import Config
from scalezero.data.mixture import Batches
from scalezero.data.replay import Replay
from scalezero.envs.pool import Pool, Steps
from scalezero.envs.spec import GOES_ON, NOTHING, TERMINATED, TRUNCATED, Task, Text
from scalezero.run.build import groups_of, rows_of
from scalezero.run.pace import Busy
from scalezero.run.texts import Texts


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    task: str
    score: float  # sum of unclipped rewards
    decisions: int


@dataclass(frozen=True)
class Slot:
    """What one slot of environments is for."""

    task: Task
    number: int  # of the task among the run's
    copy: int  # how many slots before it have the same task
    active: bool  # False: it rests, and its task only gives it its shapes


def slots_of(tasks: Sequence[Task], solved: Sequence[bool], freed: str) -> tuple[Slot, ...]:
    """One slot for each task; those of solved tasks go to unsolved ones in turn, or rest.

    A slot's kind of observation never changes. When all are solved, all go on as they began.
    """
    slots: list[Slot] = []
    numbers = range(len(tasks))
    kind = [task.kind for task in tasks]
    given = dict.fromkeys(numbers, 0)
    for home in numbers:
        open_ones = [n for n in numbers if not solved[n] and kind[n] == kind[home]]
        if not solved[home] or all(solved):
            number = home
        elif open_ones and freed == "share":
            number = min(open_ones, key=lambda n: given[n])
            given[number] += 1
        else:
            slots.append(Slot(tasks[home], home, 0, active=False))
            continue
        copy = sum(slot.number == number for slot in slots)
        slots.append(Slot(tasks[number], number, copy, active=True))
    return tuple(slots)


def observation_of(steps: Steps, table: TaskTable) -> Observation:
    """What the environments show, as wide as an agent of the tasks of `table` needs it."""
    widen = lambda part, width, fill: np.pad(
        part, ((0, 0), (0, 0), (0, width - part.shape[-1])), constant_values=fill
    )
    return Observation(
        jnp.asarray(
            widen(steps.vector, table.vector_size, 0) if len(steps.vector) else steps.vector
        ),
        jnp.asarray(steps.image),
        jnp.asarray(widen(steps.text, 1 + table.most_listed, NOTHING)),
    )


def batch_of(batches: Batches) -> Batch:
    """What a mixture sampled, for the learner."""
    names = ("action", "candidates", "policy", "valid", "reward", "ending", "known")
    seen = Observation(*map(jnp.asarray, batches.shown))
    return Batch(observation=seen, **{name: jnp.asarray(getattr(batches, name)) for name in names})


def ending_of(steps: Steps) -> np.ndarray:
    """How each environment's episode has ended at this observation, `u8[slot, env]`."""
    ending = np.where(steps.truncated, TRUNCATED, GOES_ON)
    return np.where(steps.terminated, TERMINATED, ending).astype(np.uint8)


class Group:
    """Some of the environments of every slot, between two decisions."""

    def __init__(
        self,
        slots: Sequence[Slot],
        world: World,
        config: Config,
        texts: Texts,
        busy: Busy,
        which: int,
        turns: int,
    ) -> None:
        """Make the environments and start them."""
        rows = rows_of(config)
        self.slots = slots
        words = np.random.SeedSequence([config.seed, which, turns]).generate_state(1)
        tasks, active = [slot.task for slot in slots], [slot.active for slot in slots]
        seed, read = int(words[0]), texts.read
        self.pool = Pool(tasks, rows, seed=seed, training=True, active=active, read=read)
        self.texts, self.busy = texts, busy
        self.patience = config.data.patience
        self.envs = config.data.envs
        self.lane = which * rows + np.arange(rows)
        self.steps = self.pool.reset()
        self.ending = ending_of(self.steps)
        self.first = np.ones_like(self.ending, dtype=bool)
        self.history: History = empty_history(world, len(slots), rows, config.search.context)
        self.planned: Plan | None = None  # newest, for the slots sent on with it
        self.plan: Any = None  # a `Plan` of NumPy arrays: what the environments of each slot follow
        self.turns, self.waited = 0, 0.0  # how many, and the seconds in them without anything to do
        self.late = np.zeros(len(slots), int)  # turns that went on without a slot
        self.score = np.zeros(self.ending.shape)
        self.length = np.zeros(self.ending.shape, int)

    def receive(self, replays: Sequence[Replay]) -> list[Episode]:
        """Wait for the environments, remember the decisions just followed; the ended episodes."""
        if self.planned is None:
            return []
        self.plan = _merged(jax.device_get(self.planned), self.plan, self.steps.ready)
        before, self.planned = self.steps, None
        began = time.perf_counter()
        self.steps = self.pool.recv(self.patience)
        self.waited += time.perf_counter() - began
        self.turns += 1
        self.late += ~self.steps.ready
        for slot, each in enumerate(self.slots):
            if not self.steps.ready[slot]:
                self.steps.keep(slot, before)
            elif each.active:
                self._append(slot, before, replays[each.number])
        return self._advance()

    def send(
        self, world: World, task: jax.Array, config: Config, *, at_random: bool, key: jax.Array
    ) -> None:
        """Plan, or draw `at_random`, and start the environments that wait on what was decided."""
        ready = self.steps.ready
        with self.busy.working():
            if at_random:  # and the history stays empty
                seen = observation_of(self.steps, world.tasks)
                given = world.tasks, world.shape, task, seen
                action, self.planned = act_at_random(*given, key=key)
            else:
                given = self.given(world, task, config)
                action, self.planned, history = act(*given, key=key)
                self.history = _merged(history, self.history, ready, where=jnp.where)
            action = np.asarray(action)
        self.pool.send(action, ready)

    def given(self, world: World, task: jax.Array, config: Config) -> tuple[Any, ...]:
        """What a decision is made from (`act`), but for a key."""
        seen = observation_of(self.steps, world.tasks)
        first, explore = jnp.asarray(self.first), jnp.ones(())
        library = self.texts.contents()
        return world, task, self.history, seen, library, first, config.search, explore

    def _append(self, slot: int, before: Steps, replay: Replay) -> None:
        width, count = replay.task.action.width, replay.candidates
        replay.append(
            self.slots[slot].copy * self.envs + self.lane,
            before.shown[slot][..., : replay.task.observation.shape[-1]],
            self.plan.action[slot, :, :width],
            self.plan.policy[slot, :, :count],
            self.plan.candidates[slot, :, :count, :width],
            self.plan.value[slot],
            self.steps.reward[slot],
            self.ending[slot],
        )

    def _advance(self) -> list[Episode]:
        ready = self.steps.ready[:, None]
        self.first = np.where(ready, self.ending != GOES_ON, self.first)
        score = np.where(self.first, 0.0, self.score) + self.steps.score
        self.score = np.where(ready, score, self.score)
        self.length = np.where(ready, np.where(self.first, 0, self.length + 1), self.length)
        self.ending = np.where(ready, ending_of(self.steps), self.ending)
        return [
            Episode(
                self.slots[slot].task.name,
                float(self.score[slot, row]),
                int(self.length[slot, row]),
            )
            for slot, row in np.argwhere(ready & (self.ending != GOES_ON))
        ]


def _merged[Tree](
    new: Tree, old: Tree | None, ready: np.ndarray, where: Callable[..., Any] = np.where
) -> Tree:
    """Slot by slot, the new where it is `ready`, else the old; `where` is of their kind."""
    if old is None or ready.all():
        return new
    pick = lambda a, b: where(ready.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, new, old)


class Collector:
    """All environments of a run, in groups that take turns."""

    def __init__(
        self,
        slots: Sequence[Slot],
        world: World,
        config: Config,
        replays: Sequence[Replay],
        texts: Texts,
        busy: Busy,
        turns: int,
    ) -> None:
        """Make and start the environments.

        Args:
            slots: What each slot of environments is for.
            world: For its shapes.
            config: Of the run.
            replays: What is remembered goes there, by task.
            texts: What was met in words.
            busy: Told when the device decides.
            turns: How many there were before: other episodes follow after each start.
        """
        self.config = config
        self.replays = replays
        self.slots = tuple(slots)
        self.groups = tuple(
            Group(slots, world, config, texts, busy, which, turns)
            for which in range(groups_of(config))
        )
        self.task = jnp.asarray([slot.number for slot in slots])
        for replay in replays:
            replay.cut(replay.lanes)  # what was open before goes on nowhere
        self._thread = ThreadPoolExecutor(1, "search")
        self._compiling: Future[Any] | None = None

    def turn(self, world: World, number: int, *, at_random: bool, key: jax.Array) -> list[Episode]:
        """One decision in one group of environments; the episodes that had ended there."""
        group, key = self.groups[number % len(self.groups)], jax.random.fold_in(key, number)
        episodes = group.receive(self.replays)
        if at_random and self._compiling is None:  # so that the first plan need not wait for it
            given = group.given(world, self.task, self.config)
            self._compiling = self._thread.submit(lambda: act.lower(*given, key=key).compile())
        elif self._compiling is not None and not at_random:
            self._compiling.result()
            self._compiling = None
        group.send(world, self.task, self.config, at_random=at_random, key=key)
        return episodes

    def metrics(self) -> dict[str, float]:
        """Of the time since the environments were made: how they kept pace, and what they counted.

        `waited`: seconds without anything to do but wait for them. `late`: the share of turns that
        went on without a task with text. The rest: see `Workers.counts`.
        """
        line = {"waited": sum(group.waited for group in self.groups)}
        turns = max(1, sum(group.turns for group in self.groups))
        for place, slot in enumerate(self.slots):
            if isinstance(slot.task.observation, Text):
                late = sum(int(group.late[place]) for group in self.groups)
                line[f"{slot.task.name}/late"] = late / turns
        for group in self.groups:
            for name, count in group.pool.counts().items():
                line[name] = line.get(name, 0.0) + count
        return line

    def close(self) -> None:
        """Stop the environments, and wait for what is being compiled."""
        for group in self.groups:
            group.pool.close()
        self._thread.shutdown()
