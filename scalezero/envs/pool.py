"""How do the environments of many tasks step together?"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from scalezero.envs.catalog import make
from scalezero.envs.spec import NOTHING, Image, Step, SuiteMissing, Task, Text, Vector, VectorEnv
from scalezero.envs.workers import Workers


class EnvironmentDied(RuntimeError):
    """An environment that raised; the message names the task and the cause."""


@dataclass(frozen=True)
class Steps:
    """What every environment of every task says after one decision.

    Slots are in the order of the pool's tasks: those that show vectors, then images, then text.
    """

    vector: np.ndarray  # f32[vector_slot, env, size], padded with zeros to the widest
    image: np.ndarray  # u8[image_slot, env, height, width, channels]
    text: np.ndarray  # i32[text_slot, env, 1 + choices], numbers in the run's book
    reward: np.ndarray  # f32[slot, env]
    score: np.ndarray  # f32[slot, env]
    terminated: np.ndarray  # bool[slot, env]
    truncated: np.ndarray  # bool[slot, env]
    ready: np.ndarray  # bool[slot]: False where the step is still under way, and all else is empty

    @property
    def shown(self) -> tuple[np.ndarray, ...]:
        """What each slot shows, in order."""
        return *self.vector, *self.image, *self.text

    def keep(self, slot: int, before: "Steps") -> None:
        """Let one slot show what it showed `before`."""
        self.shown[slot][...] = before.shown[slot]
        for name in ("reward", "score", "terminated", "truncated"):
            getattr(self, name)[slot] = getattr(before, name)[slot]


class Pool:
    """`envs` environments in each of several slots, all of one task.

    The engines step outside Python's lock, one thread for each task; `send` only starts them. Games
    of text take seconds now and then: `recv` need not wait for them.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        envs: int,
        *,
        seed: int,
        training: bool,
        active: Sequence[bool] | None = None,
        read: Callable[[np.ndarray, int], np.ndarray] | None = None,
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
            read: From pages and the most actions they list to their numbers (`Book.read`); called
                in the order of slots, from one thread. Only text tasks need it.
        """
        self.tasks = tuple(tasks)
        self._read = read or _unread
        self.envs = envs
        active = [True] * len(self.tasks) if active is None else active
        _check_order(self.tasks)
        self._threads = ThreadPoolExecutor(len(self.tasks), thread_name_prefix="envs")
        self._pending: dict[int, Future[Step]] = {}  # by slot
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
        self._pending = {slot: self._threads.submit(self._first, slot) for slot in self._engines}
        return self._collect("reset()", None)

    def send(self, action: np.ndarray, slots: np.ndarray | None = None) -> None:
        """Start a step with `action`, `f32[slot, env, width]`, padded to the widest.

        Args:
            action: What to do.
            slots: Only where this is True, `bool[slot]`.
        """
        chosen = [slot for slot in self._engines if slots is None or slots[slot]]
        if self._pending.keys() & set(chosen):
            raise RuntimeError("pool: send() twice in a row; call recv() between them")
        for slot in chosen:
            mine = action[slot, :, : self.tasks[slot].action.width]
            self._pending[slot] = self._threads.submit(self._engines[slot].step, mine)

    def recv(self, patience: float | None = None) -> Steps:
        """Wait for the steps that `send` started.

        Args:
            patience: Seconds to wait for games of text when everything else is there; None: as
                long as it takes. At least one slot is ready.
        """
        if not self._pending:
            raise RuntimeError("pool: recv() without a step under way; call send() first")
        return self._collect("step()", patience)

    def counts(self) -> Counter[str]:
        """What the games of text counted so far, by `suite/task/what`."""
        total: Counter[str] = Counter()
        for slot, engine in self._engines.items():
            if isinstance(engine, Workers):
                what = {**engine.counts, "dropped": int(engine.dropped.sum())}
                total.update({f"{self.tasks[slot].name}/{name}": n for name, n in what.items()})
        return total

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
        texts = [t.observation for t in self.tasks if isinstance(t.observation, Text)]
        size = max((each.size for each in vectors), default=0)
        numbers = 1 + max((each.choices for each in texts), default=0)
        shape = images[0].shape if images else (0, 0, 0)
        each = (len(self.tasks), self.envs)
        return Steps(
            vector=np.zeros((len(vectors), self.envs, size), np.float32),
            image=np.zeros((len(images), self.envs, *shape), np.uint8),
            text=np.full((len(texts), self.envs, numbers), NOTHING, np.int32),
            reward=np.zeros(each, np.float32),
            score=np.zeros(each, np.float32),
            terminated=np.zeros(each, bool),
            truncated=np.zeros(each, bool),
            ready=np.ones(len(self.tasks), bool),
        )

    def _first(self, slot: int) -> Step:
        nothing = np.zeros(self.envs, np.float32)
        return Step(self._engines[slot].reset(), nothing, nothing > 0, nothing > 0, nothing)

    def _wait(self) -> None:
        for future in self._pending.values():
            future.exception()
        self._pending = {}

    def _collect(self, doing: str, patience: float | None) -> Steps:
        """What has ended, in the order of slots: numbers of texts must not depend on speed."""
        slow = {s: f for s, f in self._pending.items() if isinstance(self._shows(s), Text)}
        wait([future for slot, future in self._pending.items() if slot not in slow])
        if len(slow) == len(self._pending):
            wait(slow.values(), return_when=FIRST_COMPLETED)
        wait(slow.values(), timeout=patience)
        into = self._blank()
        for slot in sorted(slot for slot, future in self._pending.items() if future.done()):
            error = self._pending[slot].exception()
            if error is not None:
                raise _died(self.tasks[slot], doing, error) from error
            self._put(slot, self._pending.pop(slot).result(), into)
        into.ready[list(self._pending)] = False
        return into

    def _put(self, slot: int, step: Step, into: Steps) -> None:
        shows, shown = self._shows(slot), step.observation
        if isinstance(shows, Text):
            shown = self._read(shown, shows.choices)
        into.shown[slot][..., : shown.shape[-1]] = shown
        for name in ("reward", "score", "terminated", "truncated"):
            getattr(into, name)[slot] = getattr(step, name)

    def _shows(self, slot: int) -> Vector | Image | Text:
        return self.tasks[slot].observation


def _unread(pages: np.ndarray, choices: int) -> np.ndarray:
    raise ValueError("pool: tasks with text need something that reads pages; give it as `read`")


def _died(task: Task, doing: str, error: BaseException) -> EnvironmentDied:
    return EnvironmentDied(f"{task.name}: died in {doing}: {type(error).__name__}: {error}")


def _check_order(tasks: Sequence[Task]) -> None:
    for one, after in itertools.pairwise(tasks):
        if one.kind > after.kind:
            raise ValueError(
                f"{after.name}: follows {one.name}, but tasks that show vectors come first, then "
                "those that show images, then text"
            )
    shown = [task for task in tasks if isinstance(task.observation, Image)]
    for task in shown:
        if task.observation != shown[0].observation:
            raise ValueError(
                f"{task.name}: shows {task.observation}, but {shown[0].name} shows "
                f"{shown[0].observation}; images of one run must have one shape"
            )
