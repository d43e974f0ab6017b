"""Which rows of which tasks make up a batch?

A batch is laid out as `slot row …`: a slot holds windows of one task, and which task is data, not
shape. Slots of tasks that show vectors come first, then pictures, then text. Every array is as wide
as the widest task of the mixture needs, so shapes never change during a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from scalezero.data.replay import Replay, Window
from scalezero.envs.spec import KINDS, NOTHING, Image, Text, Vector


@dataclass(frozen=True)
class Batches:
    """The data of `batch` updates. Times are as in `Window`; padding is 0 and not `valid`."""

    task: Int32[np.ndarray, " slot"]
    vector: Float32[np.ndarray, "batch vector_slot row moment size"]
    image: UInt8[np.ndarray, "batch image_slot row moment height width channel"]
    text: Int32[np.ndarray, "batch text_slot row moment number"]
    action: Float32[np.ndarray, "batch slot row transition action"]
    policy: Float32[np.ndarray, "batch slot row time candidate"]
    candidates: Float32[np.ndarray, "batch slot row time candidate action"]
    valid: Bool[np.ndarray, "batch slot row time candidate"]  # False: not an action of this task
    value: Float32[np.ndarray, "batch slot row moment"]
    reward: Float32[np.ndarray, "batch slot row transition"]
    ending: UInt8[np.ndarray, "batch slot row moment"]
    known: Bool[np.ndarray, "batch slot row moment"]

    @property
    def shown(self) -> tuple[np.ndarray, ...]:
        """The observations of each kind, in the order of `KINDS`."""
        return self.vector, self.image, self.text


class Mixture:
    """The replays of all tasks of a run, in the run's order of tasks."""

    def __init__(self, replays: Sequence[Replay]) -> None:
        """Find the shapes that hold every task's rows."""
        kinds = [replay.task.observation for replay in replays]
        pictures = {
            kind.shape: replay.task.name
            for kind, replay in zip(kinds, replays, strict=True)
            if isinstance(kind, Image)
        }
        if len(pictures) > 1:
            said = ", ".join(f"{shape} ({name})" for shape, name in pictures.items())
            raise ValueError(f"tasks of one run must show pictures of one shape, not {said}")
        self.replays = tuple(replays)
        self.kind = np.array([replay.task.kind for replay in replays])
        self.size = max((kind.size for kind in kinds if isinstance(kind, Vector)), default=0)
        self.picture = next(iter(pictures), (0, 0, 0))
        self.listed = max((kind.choices for kind in kinds if isinstance(kind, Text)), default=0)
        self.width = max(replay.task.action.width for replay in replays)
        self.candidates = max(replay.candidates for replay in replays)

    def spread(
        self, weights: Float[np.ndarray, " task"], slots: int, rng: np.random.Generator
    ) -> Int32[np.ndarray, " slot"]:
        """Deal slots to tasks in proportion to `weights`, each kind of observation its own.

        How many slots a kind has depends only on the tasks of the run, so that shapes stay. Within
        a kind, a task gets its exact share, rounded up or down at random. A kind whose weights
        are all 0 still has slots to fill: its tasks share them evenly.
        """
        parts = []
        for kind, count in enumerate(self._slots_of_kinds(slots)):
            task = np.flatnonzero(self.kind == kind)
            parts.append(task[_deal(weights[task], count, rng)])
        return np.concatenate(parts).astype(np.int32)

    def sample(
        self,
        task: Int[np.ndarray, " slot"],
        rows: int,
        time: int,
        lookahead: int,
        recent: float,
        batches: int,
        rng: np.random.Generator,
    ) -> Batches:
        """Windows for several updates at once: in each, `rows` of the task of every slot.

        Args:
            task: Of each slot.
            rows: Windows of each slot and update.
            time: Decisions of each window.
            lookahead: Decisions after these.
            recent: The share of windows from the newest rows.
            batches: Updates.
            rng: Consumed.
        """
        kind = self.kind[task]
        if np.any(kind[:-1] > kind[1:]):
            raise ValueError(
                f"slots hold tasks {task.tolist()}, but those that show vectors must come first, "
                "then pictures, then text"
            )
        slots, transitions = len(task), time + lookahead
        vectors, images, texts = (int(np.count_nonzero(kind == k)) for k in range(len(KINDS)))
        lead = (batches, slots, rows)
        batch = Batches(
            task=task.astype(np.int32),
            vector=np.zeros((batches, vectors, rows, transitions + 1, self.size), np.float32),
            image=np.empty((batches, images, rows, transitions + 1, *self.picture), np.uint8),
            text=np.full(
                (batches, texts, rows, transitions + 1, 1 + self.listed), NOTHING, np.int32
            ),
            action=np.zeros((*lead, transitions, self.width), np.float32),
            policy=np.zeros((*lead, time, self.candidates), np.float32),
            candidates=np.zeros((*lead, time, self.candidates, self.width), np.float32),
            valid=np.zeros((*lead, time, self.candidates), bool),
            value=np.empty((*lead, transitions + 1), np.float32),
            reward=np.empty((*lead, transitions), np.float32),
            ending=np.empty((*lead, transitions + 1), np.uint8),
            known=np.empty((*lead, transitions + 1), bool),
        )
        seen = [part[:, i] for part in batch.shown for i in range(part.shape[1])]
        for slot, each in enumerate(task):
            window = self.replays[each].sample(batches * rows, time, lookahead, recent, rng)
            _put(batch, slot, seen[slot], window)
        return batch

    def _slots_of_kinds(self, slots: int) -> list[int]:
        """How many slots of a batch each kind of observation has: its share, and at least one."""
        tasks = np.bincount(self.kind, minlength=len(KINDS))
        if slots < np.count_nonzero(tasks):
            raise ValueError(
                f"{slots} slots cannot hold the {np.count_nonzero(tasks)} kinds of observations "
                "there are; use at least one for each"
            )
        count = np.minimum(tasks, 1)
        while int(count.sum()) < slots:  # to whom has the least of its share
            count[np.argmax(tasks * slots / len(self.kind) - count)] += 1
        return count.tolist()


def _put(batch: Batches, slot: int, seen: np.ndarray, window: Window) -> None:
    """Write the windows of one slot; what is narrower than the mixture leaves padding."""
    lead = seen.shape[0], seen.shape[1]
    count, width = window.candidates.shape[-2:]
    pairs = [
        (seen[..., : window.observation.shape[-1]], window.observation),
        (batch.action[:, slot, ..., :width], window.action),
        (batch.policy[:, slot, ..., :count], window.policy),
        (batch.candidates[:, slot, ..., :count, :width], window.candidates),
        (batch.value[:, slot], window.value),
        (batch.reward[:, slot], window.reward),
        (batch.ending[:, slot], window.ending),
        (batch.known[:, slot], window.known),
    ]
    for place, array in pairs:
        place[...] = array.reshape(*lead, *array.shape[1:])
    batch.valid[:, slot, ..., :count] = True


def _deal(
    weights: Float[np.ndarray, " task"], slots: int, rng: np.random.Generator
) -> Int[np.ndarray, " slot"]:
    """For each slot, in order, a task: evenly spaced points on the cumulated weights."""
    if not slots:
        return np.zeros(0, int)
    if np.any(weights < 0) or not np.all(np.isfinite(weights)):
        raise ValueError(f"weights of tasks are {weights.tolist()}, but must be finite and ≥ 0")
    total = np.cumsum(weights if np.any(weights) else np.ones(len(weights)), dtype=np.float64)
    point = (rng.random() + np.arange(slots)) / slots * total[-1]
    return np.searchsorted(total, np.minimum(point, np.nextafter(total[-1], 0)), side="right")
