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
from scalezero.envs.spec import GOES_ON, TERMINATED, TRUNCATED, Task


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    task: str
    score: float  # sum of unclipped rewards
    decisions: int


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
    """Half of the environments of every task, between two decisions."""

    def __init__(
        self, tasks: Sequence[Task], world: World, config: Config, which: int, turns: int
    ) -> None:
        """Make the environments and start them."""
        rows = config.data.envs // 2
        self.tasks = tasks
        words = np.random.SeedSequence([config.seed, which, turns]).generate_state(1)
        self.pool = Pool(tasks, rows, seed=int(words[0]), training=True)
        self.lane = which * rows + np.arange(rows)
        self.steps = self.pool.reset()
        self.ending = ending_of(self.steps)
        self.first = np.ones_like(self.ending, dtype=bool)
        self.history: History = empty_history(world, len(tasks), rows, config.search.context)
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
        for slot, replay in enumerate(replays):
            width, count = replay.task.action.width, replay.candidates
            seen = (
                before.vector[slot, :, : replay.task.observation.shape[0]]
                if slot < vectors
                else before.image[slot - vectors]
            )
            replay.append(
                self.lane,
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
                self.tasks[slot].name, float(self.score[slot, row]), int(self.length[slot, row])
            )
            for slot, row in np.argwhere(self.ending != GOES_ON)
        ]


class Collector:
    """All environments of a run, in two halves that take turns."""

    def __init__(
        self,
        tasks: Sequence[Task],
        world: World,
        config: Config,
        replays: Sequence[Replay],
        turns: int,
    ) -> None:
        """Make and start the environments.

        Args:
            tasks: In slot order.
            world: For its shapes.
            config: Of the run.
            replays: What is remembered goes there.
            turns: How many there were in earlier starts: other episodes follow after each.
        """
        self.config = config
        self.replays = replays
        self.halves = tuple(Half(tasks, world, config, which, turns) for which in (0, 1))
        self.task = jnp.arange(len(tasks))
        for replay in replays:
            replay.cut(replay.lanes)  # what was open before a resume goes on nowhere

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
