"""Which rows of which tasks make up a batch?

A batch is laid out as `slot row …`: a slot holds windows of one task, and which task is data, not
shape. Slots of tasks that show vectors come first, then those of tasks that show pictures. Every
array is as wide as the widest task of the mixture needs, so shapes never change during a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from scalezero.data.replay import Replay, Window
from scalezero.envs.spec import Image, Vector


@dataclass(frozen=True)
class Batches:
    """The data of `batch` updates. Times are as in `Window`; padding is 0 and not `valid`."""

    task: Int32[np.ndarray, " slot"]
    vector: Float32[np.ndarray, "batch vector_slot row moment size"]
    image: UInt8[np.ndarray, "batch image_slot row moment height width channel"]
    action: Float32[np.ndarray, "batch slot row transition action"]
    policy: Float32[np.ndarray, "batch slot row time candidate"]
    candidates: Float32[np.ndarray, "batch slot row time candidate action"]
    valid: Bool[np.ndarray, "batch slot row time candidate"]  # False: not an action of this task
    value: Float32[np.ndarray, "batch slot row moment"]
    reward: Float32[np.ndarray, "batch slot row transition"]
    ending: UInt8[np.ndarray, "batch slot row moment"]
    known: Bool[np.ndarray, "batch slot row moment"]


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
        self.shows_image = np.array([isinstance(kind, Image) for kind in kinds])
        self.size = max((kind.size for kind in kinds if isinstance(kind, Vector)), default=0)
        self.picture = next(iter(pictures), (0, 0, 0))
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
        images = self._image_slots(slots)
        parts = []
        for kind, count in ((False, slots - images), (True, images)):
            task = np.flatnonzero(self.shows_image == kind)
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
        images = self.shows_image[task]
        if np.any(images[:-1] > images[1:]):
            raise ValueError(
                f"slots hold tasks {task.tolist()}, but those that show vectors must come first"
            )
        slots, vectors = len(task), int(np.count_nonzero(~images))
        transitions = time + lookahead
        lead = (batches, slots, rows)
        batch = Batches(
            task=task.astype(np.int32),
            vector=np.zeros((batches, vectors, rows, transitions + 1, self.size), np.float32),
            image=np.empty(
                (batches, slots - vectors, rows, transitions + 1, *self.picture), np.uint8
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
        for slot, each in enumerate(task):
            window = self.replays[each].sample(batches * rows, time, lookahead, recent, rng)
            seen = batch.vector[:, slot] if slot < vectors else batch.image[:, slot - vectors]
            _put(batch, slot, seen, window)
        return batch

    def _image_slots(self, slots: int) -> int:
        tasks, images = len(self.shows_image), int(np.count_nonzero(self.shows_image))
        if images in (0, tasks):
            return slots if images else 0
        if slots < 2:
            raise ValueError(
                f"a batch of {slots} slot cannot hold both vectors and pictures; use at least 2"
            )
        return min(max(round(slots * images / tasks), 1), slots - 1)


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
