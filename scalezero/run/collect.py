"""How experience is gathered: one half of the environments is planned for while the other steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scalezero.agent.act import act, empty_history
from scalezero.agent.records import History, Observation, Plan
from scalezero.agent.world import World
from scalezero.config import Config
from scalezero.data.replay import Replay
from scalezero.envs.pool import Pool, Steps
from scalezero.envs.spec import GOES_ON, TERMINATED, TRUNCATED, Image, Task


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
    kind = [isinstance(task.observation, Image) for task in tasks]
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


def observation_of(steps: Steps, size: int) -> Observation:
    """What the environments show, for an agent whose widest vector has `size` entries."""
    missing = size - steps.vector.shape[-1] if len(steps.vector) else 0
    vector = np.pad(steps.vector, ((0, 0), (0, 0), (0, missing)))
    return Observation(jnp.asarray(vector), jnp.asarray(steps.image))


def ending_of(steps: Steps) -> np.ndarray:
    """How each environment's episode has ended at this observation, `u8[slot, env]`."""
    ending = np.where(steps.truncated, TRUNCATED, GOES_ON)
    return np.where(steps.terminated, TERMINATED, ending).astype(np.uint8)


class Half:
    """Half of the environments of every slot, between two decisions."""

    def __init__(
        self,
        slots: Sequence[Slot],
        world: World,
        config: Config,
        which: int,
        turns: int,
    ) -> None:
        """Make the environments and start them."""
        rows = config.data.envs // 2
        self.slots = slots
        words = np.random.SeedSequence([config.seed, which, turns]).generate_state(1)
        tasks, active = [slot.task for slot in slots], [slot.active for slot in slots]
        self.pool = Pool(tasks, rows, seed=int(words[0]), training=True, active=active)
        self.envs = config.data.envs
        self.lane = which * rows + np.arange(rows)
        self.steps = self.pool.reset()
        self.ending = ending_of(self.steps)
        self.first = np.ones_like(self.ending, dtype=bool)
        self.history: History = empty_history(world, len(slots), rows, config.search.context)
        self.planned: Plan | None = None
        self.score = np.zeros(self.ending.shape)
        self.length = np.zeros(self.ending.shape, int)

    def receive(self, replays: Sequence[Replay]) -> list[Episode]:
        """Wait for the environments, remember the decisions just followed; the ended episodes."""
        if self.planned is None:
            return []
        before, plan = self.steps, jax.device_get(self.planned)
        self.planned = None
        self.steps = self.pool.recv()
        vectors = len(before.vector)
        for slot, each in enumerate(self.slots):
            if not each.active:
                continue
            replay = replays[each.number]
            width, count = replay.task.action.width, replay.candidates
            seen = (
                before.vector[slot, :, : replay.task.observation.shape[0]]
                if slot < vectors
                else before.image[slot - vectors]
            )
            replay.append(
                each.copy * self.envs + self.lane,
                seen,
                plan.action[slot, :, :width],
                plan.policy[slot, :, :count],
                plan.candidates[slot, :, :count, :width],
                plan.value[slot],
                self.steps.reward[slot],
                self.ending[slot],
            )
        return self._advance()

    def send(self, world: World, task: jax.Array, config: Config, *, key: jax.Array) -> None:
        """Plan, and start the environments on what was decided."""
        action, self.planned, self.history = act(
            world,
            task,
            self.history,
            observation_of(self.steps, world.tasks.vector_size),
            jnp.asarray(self.first),
            config.search,
            jnp.ones(()),
            key=key,
        )
        self.pool.send(np.asarray(action))

    def _advance(self) -> list[Episode]:
        self.first = self.ending != GOES_ON
        self.score = np.where(self.first, 0.0, self.score) + self.steps.score
        self.length = np.where(self.first, 0, self.length + 1)
        self.ending = ending_of(self.steps)
        return [
            Episode(
                self.slots[slot].task.name,
                float(self.score[slot, row]),
                int(self.length[slot, row]),
            )
            for slot, row in np.argwhere(self.ending != GOES_ON)
        ]


class Collector:
    """All environments of a run, in two halves that take turns."""

    def __init__(
        self,
        slots: Sequence[Slot],
        world: World,
        config: Config,
        replays: Sequence[Replay],
        turns: int,
    ) -> None:
        """Make and start the environments.

        Args:
            slots: What each slot of environments is for.
            world: For its shapes.
            config: Of the run.
            replays: What is remembered goes there, by task.
            turns: How many there were before: other episodes follow after each start.
        """
        self.config = config
        self.replays = replays
        self.slots = tuple(slots)
        self.halves = tuple(Half(slots, world, config, which, turns) for which in (0, 1))
        self.task = jnp.asarray([slot.number for slot in slots])
        for replay in replays:
            replay.cut(replay.lanes)  # what was open before goes on nowhere

    def turn(self, world: World, number: int, *, key: jax.Array) -> list[Episode]:
        """One decision in one half of the environments; the episodes that had ended there."""
        half = self.halves[number % 2]
        episodes = half.receive(self.replays)
        half.send(world, self.task, self.config, key=jax.random.fold_in(key, number))
        return episodes

    def close(self) -> None:
        """Stop the environments."""
        for half in self.halves:
            half.pool.close()
