"""Where does every row of a task's experience lie, and which row follows it?

Rows lie in flat columns that are cut into segments of `length` rows. A *lane* (one environment)
writes into its open segment; when that is full, the segment closed longest ago is recycled as the
lane's next one and chained to it. So a row is stored once, and what follows it is found by walking
the chain. A chain never dangles: a segment is closed before its successor is, hence recycled first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64

FEWEST = 4  # segments for every open lane: the one it writes, and some to remember
NEWEST = 0.2  # the share of segments that counts as recent
NONE = -1  # stands for "no segment" and "no lane"
OPEN = np.iinfo(np.int64).max  # the turn of a segment that is being written: never

ENDING = np.dtype(np.uint8)
WORD = np.dtype(np.int64)

type Columns = Mapping[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class Ledger:
    """What is known of every segment. Times are in ticks of `Segments.clock`."""

    next: Int64[np.ndarray, " segment"]  # the segment that goes on from it, or NONE
    lane: Int64[np.ndarray, " segment"]  # the lane that writes it, or NONE
    used: Int64[np.ndarray, " segment"]  # rows written
    starts: Int64[np.ndarray, " segment"]  # rows that are not final and whose successor is stored
    serial: Int64[np.ndarray, " segment"]  # when it was opened; tells one use from the next
    turn: Int64[np.ndarray, " segment"]  # when it was closed: the least is recycled next
    version: Int64[np.ndarray, " segment"]  # when anything about it last changed


def segment_bytes(columns: Columns, length: int) -> int:
    """Bytes that one more segment costs, bookkeeping included."""
    row = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in columns.values())
    words = len(Ledger.__dataclass_fields__) + 1  # the ledger, and a lane's open segment
    return length * (row + ENDING.itemsize) + words * WORD.itemsize


class Segments:
    """The rows of one task. Untouched memory stays untouched, so an empty store costs little."""

    def __init__(self, name: str, columns: Columns, segments: int, length: int) -> None:
        """Reserve room for `segments` segments; `name` is the task's, for messages."""
        rows = segments * length
        self.name, self.length, self.clock = name, length, 0
        self.ending = np.zeros(rows, ENDING)
        self.columns = {
            **{key: np.zeros((rows, *shape), dtype) for key, (shape, dtype) in columns.items()},
            "ending": self.ending,
        }
        self.ledger = Ledger(
            next=np.full(segments, NONE, WORD),
            lane=np.full(segments, NONE, WORD),
            used=np.zeros(segments, WORD),
            starts=np.zeros(segments, WORD),
            serial=np.zeros(segments, WORD),
            turn=np.arange(-segments, 0, dtype=WORD),  # unused ones first, in order
            version=np.zeros(segments, WORD),
        )
        self.held = np.full(segments, NONE, WORD)  # the open segment of every lane

    @property
    def bytes(self) -> int:
        """Bytes of all arrays, whether or not the memory was touched yet."""
        arrays = [*self.columns.values(), *vars(self.ledger).values(), self.held]
        return sum(array.nbytes for array in arrays)

    @property
    def lanes(self) -> Int64[np.ndarray, " env"]:
        """The lanes that have an open segment."""
        return np.flatnonzero(self.held != NONE)

    def claim(self, lane: Int[np.ndarray, " env"]) -> Int64[np.ndarray, " env"]:
        """The next row of each lane, for the caller to fill at once."""
        self._check(lane)
        self.clock += 1
        ledger, segment = self.ledger, self.held[lane]
        going = segment[segment != NONE]
        last = going * self.length + ledger.used[going] - 1
        ledger.starts[going] += self.ending[last] == 0  # their successors are stored now
        for place in np.flatnonzero((segment == NONE) | (ledger.used[segment] == self.length)):
            segment[place] = self._open(int(lane[place]))
        row = segment * self.length + ledger.used[segment]
        ledger.used[segment] += 1
        ledger.version[segment] = self.clock
        return row

    def cut(self, lane: Int[np.ndarray, " env"]) -> None:
        """End lanes: nothing follows their last rows. A lane written again starts anew."""
        for each in lane:
            if self.held[each] != NONE:
                self._close(int(each))

    def draw(
        self, count: int, recent: float, rng: np.random.Generator
    ) -> Int64[np.ndarray, " row"]:
        """Rows drawn with replacement from those that a window may start at.

        Args:
            count: How many.
            recent: The share that is drawn from the newest `NEWEST` of segments, uniformly; the
                others are drawn uniformly from all.
            rng: Consumed.
        """
        ledger = self.ledger
        used = np.flatnonzero(ledger.starts)
        if not len(used):
            raise ValueError(
                f"{self.name}: there is nothing to sample yet; append two rows of an episode first"
            )
        few = math.ceil(NEWEST * len(used))
        newest = used[np.argpartition(ledger.serial[used], -few)[-few:]]
        segment, rank = np.empty(count, WORD), np.empty(count, WORD)
        fresh = rng.random(count) < recent
        for part, among in ((~fresh, used), (fresh, newest)):
            if np.any(part):
                drawn = _pick(among, ledger.starts[among], int(np.count_nonzero(part)), rng)
                segment[part], rank[part] = drawn
        followed = ledger.used[segment] - (ledger.next[segment] == NONE)
        can = self.ending.reshape(-1, self.length)[segment] == 0
        can &= np.arange(self.length) < followed[:, None]
        before = np.cumsum(can, axis=1) <= rank[:, None]
        return segment * self.length + before.sum(axis=1)

    def walk(
        self, start: Int[np.ndarray, " row"], moments: int
    ) -> tuple[Int64[np.ndarray, "row moment"], Bool[np.ndarray, "row moment"]]:
        """The rows that follow each start (itself first), and which of them are known.

        Known: stored, and no final row lies strictly before it. An unknown row's index is 0.
        """
        place = (start % self.length)[:, None] + np.arange(moments)
        chain = [start // self.length]
        for _ in range((moments + self.length - 2) // self.length):
            chain.append(np.where(chain[-1] == NONE, NONE, self.ledger.next[chain[-1]]))
        hop, offset = np.divmod(place, self.length)
        segment = np.take_along_axis(np.stack(chain, axis=1), hop, axis=1)
        index = segment * self.length + offset
        known = (segment != NONE) & (offset < self.ledger.used[segment])
        final = np.logical_or.accumulate(known & (self.ending[index] != 0), axis=1)
        known[:, 1:] &= ~final[:, :-1]
        return np.where(known, index, 0), known

    def reopen(self) -> None:
        """Find the lanes' open segments again, after the ledger was filled from outside."""
        writing = np.flatnonzero(self.ledger.lane != NONE)
        self.held[self.ledger.lane[writing]] = writing

    def _check(self, lane: Int[np.ndarray, " env"]) -> None:
        count = len(self.held)
        if np.any(lane < 0) or np.any(lane >= count) or len(set(lane.tolist())) < len(lane):
            raise ValueError(
                f"{self.name}: lanes {lane.tolist()} must be distinct and lie in 0 … {count - 1}"
            )
        lanes = np.count_nonzero(self.held != NONE) + np.count_nonzero(self.held[lane] == NONE)
        if lanes * FEWEST > count:
            raise ValueError(
                f"{self.name}: {lanes} open lanes need {lanes * FEWEST} segments of "
                f"{self.length} rows, but the replay holds {count}; cut lanes or raise its budget"
            )

    def _open(self, lane: int) -> int:
        before = self._close(lane) if self.held[lane] != NONE else NONE
        self.clock += 1
        ledger, segment = self.ledger, int(np.argmin(self.ledger.turn))
        ledger.next[segment], ledger.lane[segment] = NONE, lane
        ledger.used[segment] = ledger.starts[segment] = 0
        ledger.serial[segment], ledger.turn[segment] = self.clock, OPEN
        self.held[lane] = segment
        if before != NONE:
            ledger.next[before] = segment
        return segment

    def _close(self, lane: int) -> int:
        self.clock += 1
        ledger, segment = self.ledger, int(self.held[lane])
        ledger.lane[segment] = self.held[lane] = NONE
        ledger.turn[segment] = ledger.version[segment] = self.clock
        return segment


def _pick(
    among: Int[np.ndarray, " segment"],
    starts: Int[np.ndarray, " segment"],
    count: int,
    rng: np.random.Generator,
) -> tuple[Int64[np.ndarray, " row"], Int64[np.ndarray, " row"]]:
    """Starts drawn uniformly from those of some segments: whose each is, and its rank there."""
    total = np.cumsum(starts)
    pick = rng.integers(total[-1], size=count)
    place = np.searchsorted(total, pick, side="right")
    return among[place], pick - (total - starts)[place]
