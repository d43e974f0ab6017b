"""How do the environments of many tasks step together?"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from scalezero.envs.catalog import make
from scalezero.envs.spec import Image, SuiteMissing, Task, Vector, VectorEnv


class EnvironmentDied(RuntimeError):
    """An environment that raised; the message names the task and the cause."""


@dataclass(frozen=True)
class Steps:
    """What every environment of every task says after one decision.

    Slots are in the order of the pool's tasks: those that show vectors, then those that show
    images.
    """

    vector: np.ndarray  # f32[vector_slot, env, size], padded with zeros to the widest
    image: np.ndarray  # u8[image_slot, env, height, width, channels]
    reward: np.ndarray  # f32[slot, env]
    score: np.ndarray  # f32[slot, env]
    terminated: np.ndarray  # bool[slot, env]
    truncated: np.ndarray  # bool[slot, env]


class Pool:
    """`envs` environments in each of several slots, all of one task.

    The engines step outside Python's lock, one thread for each task; `send` only starts them.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        envs: int,
        *,
        seed: int,
        training: bool,
        active: Sequence[bool] | None = None,
    ) -> None:
        """Make the environments; each task has its own seeds, and so do training and evaluation.

        A task's seeds depend on its name, not its place: its trajectories stay the same beside
        other tasks. A task that has several slots has other seeds in each.

        Args:
            tasks: Of each slot.
            envs: In each slot.
            seed: Of all environments.
            training: Whether rewards are clipped and lives count as the suite says.
            active: Where False, a slot has no environments and shows zeros.
        """
        self.tasks = tuple(tasks)
        self.envs = envs
        active = [True] * len(self.tasks) if active is None else active
        _check_order(self.tasks)
        self._threads = ThreadPoolExecutor(len(self.tasks), thread_name_prefix="envs")
        self._pending: list[Future[None]] = []
        self._engines: dict[int, VectorEnv] = {}  # by slot
        try:
            for slot in np.flatnonzero(active).tolist():
                task, before = self.tasks[slot], self.tasks[:slot].count(self.tasks[slot])
                words = [seed, crc32(task.name.encode()), int(training), *[before] * (before > 0)]
                start = int(np.random.SeedSequence(words).generate_state(1)[0])
                try:
                    self._engines[slot] = make(task, envs, seed=start, training=training)
                except SuiteMissing:
                    raise
                except (OSError, RuntimeError) as error:
                    raise _died(task, "make()", error) from error
        except BaseException:
            self.close()
            raise

    def reset(self) -> Steps:
        """Start everything afresh: the first observations, and zeros for the rest."""
        self._wait()
        self._next = self._blank()
        self._pending = [
            self._threads.submit(self._reset, slot, self._next) for slot in self._engines
        ]
        return self._collect("reset()")

    def send(self, action: np.ndarray) -> None:
        """Start a step with `action`, `f32[slot, env, width]`, padded to the widest."""
        if self._pending:
            raise RuntimeError("pool: send() twice in a row; call recv() between them")
        self._next = self._blank()
        self._pending = [
            self._threads.submit(self._step, slot, action[slot], self._next)
            for slot in self._engines
        ]

    def recv(self) -> Steps:
        """Wait for the step that `send` started."""
        if not self._pending:
            raise RuntimeError("pool: recv() without a step under way; call send() first")
        return self._collect("step()")

    def close(self) -> None:
        """Wait for what is under way, then close every environment."""
        self._wait()
        self._threads.shutdown()
        for engine in self._engines.values():
            engine.close()
        self._engines = {}

    def _blank(self) -> Steps:
        vectors = [t.observation for t in self.tasks if isinstance(t.observation, Vector)]
        images = [t.observation for t in self.tasks if isinstance(t.observation, Image)]
        size = max((each.size for each in vectors), default=0)
        shape = images[0].shape if images else (0, 0, 0)
        each = (len(self.tasks), self.envs)
        return Steps(
            vector=np.zeros((len(vectors), self.envs, size), np.float32),
            image=np.zeros((len(images), self.envs, *shape), np.uint8),
            reward=np.zeros(each, np.float32),
            score=np.zeros(each, np.float32),
            terminated=np.zeros(each, bool),
            truncated=np.zeros(each, bool),
        )

    def _show(self, slot: int, observation: np.ndarray, into: Steps) -> None:
        vectors = len(into.vector)
        if slot < vectors:
            into.vector[slot, :, : observation.shape[1]] = observation
        else:
            into.image[slot - vectors] = observation

    def _reset(self, slot: int, into: Steps) -> None:
        self._show(slot, self._engines[slot].reset(), into)

    def _step(self, slot: int, action: np.ndarray, into: Steps) -> None:
        step = self._engines[slot].step(action[:, : self.tasks[slot].action.width])
        self._show(slot, step.observation, into)
        into.reward[slot] = step.reward
        into.score[slot] = step.score
        into.terminated[slot] = step.terminated
        into.truncated[slot] = step.truncated

    def _wait(self) -> None:
        for future in self._pending:
            future.exception()
        self._pending = []

    def _collect(self, doing: str) -> Steps:
        pending = self._pending
        self._wait()
        for slot, future in zip(self._engines, pending, strict=True):
            error = future.exception()
            if error is not None:
                raise _died(self.tasks[slot], doing, error) from error
        return self._next


def _died(task: Task, doing: str, error: BaseException) -> EnvironmentDied:
    return EnvironmentDied(f"{task.name}: died in {doing}: {type(error).__name__}: {error}")


def _check_order(tasks: Sequence[Task]) -> None:
    pictured = [isinstance(task.observation, Image) for task in tasks]
    for task, one, after in zip(tasks[1:], pictured, pictured[1:], strict=False):
        if one and not after:
            raise ValueError(
                f"{task.name}: shows a vector but follows a task that shows an image; "
                "list all vector tasks first"
            )
    shown = [task for task in tasks if isinstance(task.observation, Image)]
    for task in shown:
        if task.observation != shown[0].observation:
            raise ValueError(
                f"{task.name}: shows {task.observation}, but {shown[0].name} shows "
                f"{shown[0].observation}; images of one run must have one shape"
            )
