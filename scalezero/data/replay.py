"""What does one task remember, and how is a window of it sampled?

A row is one decision of one environment: what was observed, the action taken, what its plan said,
and the reward that followed. When an episode ends, its *final* observation gets a row too, whose
`ending` says how; nothing was decided there, and the lane's next row starts a new episode.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped, UInt8

from scalezero.data.segments import FEWEST, NONE, Segments, segment_bytes
from scalezero.envs.spec import GOES_ON, Continuous, Task

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Window:
    """Consecutive rows of single episodes: `time` to learn from, then a look-ahead.

    There are time + lookahead `transition`s between one more `moment`s. What is not `known` is 0,
    but for the candidates of a task that is not continuous, the same everywhere. At a final row,
    whatever was appended stands in `action`, `policy`, `candidates`, `value` and `reward`.
    """

    observation: Shaped[np.ndarray, "row moment ..."]
    action: Float32[np.ndarray, "row transition action"]
    policy: Float32[np.ndarray, "row time candidate"]
    candidates: Float32[np.ndarray, "row time candidate action"]
    value: Float32[np.ndarray, "row moment"]
    reward: Float32[np.ndarray, "row transition"]
    ending: UInt8[np.ndarray, "row moment"]
    known: Bool[np.ndarray, "row moment"]  # stored, and of the episode that the window starts in
    index: Int64[np.ndarray, "row moment"]  # with `serial`: which row this is, for `update`
    serial: Int64[np.ndarray, "row moment"]


class Replay:
    """The newest rows of one task, as many as fit into `capacity_bytes` and `max_rows`."""

    def __init__(
        self,
        task: Task,
        candidates: int,
        capacity_bytes: int,
        max_rows: int,
        segment: int = 32,
        lanes: int = 1,
    ) -> None:
        """Reserve the room; memory is touched only as rows come.

        Args:
            task: Whose rows.
            candidates: Actions a search chooses among; of all but a continuous task, all in order.
            capacity_bytes: What all arrays together may take.
            max_rows: How many rows to keep at most.
            segment: Rows that are recycled together.
            lanes: Environments expected to write at once; only checked against the capacity.
        """
        if not isinstance(task.action, Continuous) and candidates != task.action.count:
            raise ValueError(
                f"{task.name}: {candidates} candidates were asked for, but a task that is not "
                f"continuous has one for each action, so {task.action.count}"
            )
        width = task.action.width
        columns = {
            "observation": (task.observation.shape, task.observation.dtype),
            "action": ((width,), FLOAT),
            "policy": ((candidates,), FLOAT),
            "value": ((), FLOAT),
            "reward": ((), FLOAT),
        }
        if isinstance(task.action, Continuous):
            columns["candidates"] = ((candidates, width), FLOAT)
        each = segment_bytes(columns, segment)
        segments = min(capacity_bytes // each, max_rows // segment)
        if segments < FEWEST * lanes:
            raise ValueError(
                f"{task.name}: a replay of {capacity_bytes:,} bytes and {max_rows:,} rows holds "
                f"{segments} segments, but {lanes} lanes need {FEWEST * lanes}; give it at least "
                f"{FEWEST * lanes * each:,} bytes and {FEWEST * lanes * segment:,} rows"
            )
        self.task = task
        self.candidates = candidates
        self.decisions = 0  # ever added; final rows are none
        self.store = Segments(task.name, columns, segments, segment)

    @property
    def rows(self) -> int:
        """Rows stored, final ones included."""
        return int(self.store.ledger.used.sum())

    @property
    def starts(self) -> int:
        """Rows that a window may start at; 0 means that there is nothing to sample yet."""
        return int(self.store.ledger.starts.sum())

    @property
    def bytes(self) -> int:
        """Bytes of all arrays; at most `capacity_bytes`, and resident only once written."""
        return self.store.bytes

    @property
    def lanes(self) -> Int64[np.ndarray, " env"]:
        """The lanes that are being written."""
        return self.store.lanes

    def append(
        self,
        lane: Int[np.ndarray, " env"],
        observation: Shaped[np.ndarray, "env ..."],
        action: Float[np.ndarray, "env action"],
        policy: Float[np.ndarray, "env candidate"],
        candidates: Float[np.ndarray, "env candidate action"],
        value: Float[np.ndarray, " env"],
        reward: Float[np.ndarray, " env"],
        ending: UInt8[np.ndarray, " env"],
    ) -> None:
        """Add the next row of each lane. Lanes are small distinct numbers; new ones just begin."""
        given = {
            "observation": observation,
            "action": action,
            "policy": policy,
            "value": value,
            "reward": reward,
            "ending": ending,
        }
        if "candidates" in self.store.columns:
            given["candidates"] = candidates
        for name, array in given.items():
            self._check(name, array, len(lane))
        row = self.store.claim(lane)
        for name, array in given.items():
            self.store.columns[name][row] = array
        self.decisions += int(np.count_nonzero(ending == GOES_ON))

    def cut(self, lane: Int[np.ndarray, " env"]) -> None:
        """End lanes whose environments are gone: what followed their last rows stays unknown."""
        self.store.cut(lane)

    def sample(
        self, count: int, time: int, lookahead: int, recent: float, rng: np.random.Generator
    ) -> Window:
        """`count` windows that start at non-final rows whose successor is stored.

        The share `recent` of them starts among the newest rows (see `Segments.draw`).
        """
        store, transitions = self.store, time + lookahead
        index, known = store.walk(store.draw(count, recent, rng), transitions + 1)
        unknown = ~known

        def take(name: str, steps: int) -> np.ndarray:
            part = store.columns[name].take(index[:, :steps], axis=0)
            part[unknown[:, :steps]] = 0
            return part

        if "candidates" in store.columns:
            candidates = take("candidates", time)
        else:
            choice = np.arange(self.candidates, dtype=FLOAT)[:, None]
            candidates = np.broadcast_to(choice, (count, time, *choice.shape))
        return Window(
            observation=take("observation", transitions + 1),
            action=take("action", transitions),
            policy=take("policy", time),
            candidates=candidates,
            value=take("value", transitions + 1),
            reward=take("reward", transitions),
            ending=take("ending", transitions + 1),
            known=known,
            index=index,
            serial=np.where(known, store.ledger.serial[index // store.length], NONE),
        )

    def update(
        self,
        index: Int[np.ndarray, " row"],
        serial: Int[np.ndarray, " row"],
        policy: Float[np.ndarray, "row candidate"],
        candidates: Float[np.ndarray, "row candidate action"],
        value: Float[np.ndarray, " row"],
    ) -> None:
        """Write what a newer search says of sampled rows; recycled and unknown rows are skipped."""
        store = self.store
        segment = index // store.length
        same = store.ledger.serial[segment] == serial
        row = index[same]
        store.clock += 1
        store.ledger.version[segment[same]] = store.clock
        store.columns["policy"][row] = policy[same]
        store.columns["value"][row] = value[same]
        if "candidates" in store.columns:
            store.columns["candidates"][row] = candidates[same]

    def _check(self, name: str, array: np.ndarray, envs: int) -> None:
        column = self.store.columns[name]
        expected = (envs, *column.shape[1:])
        if array.shape != expected:
            raise ValueError(
                f"{self.task.name}: {name} has shape {array.shape}, but must have {expected}"
            )
        if not np.can_cast(array.dtype, column.dtype, "same_kind"):
            raise ValueError(
                f"{self.task.name}: {name} is {array.dtype}, but must be {column.dtype}"
            )
