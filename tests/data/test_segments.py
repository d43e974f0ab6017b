"""Rows are found again in order, whatever was written, cut and recycled in between."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero.data.segments import NONE

SEGMENTS, LENGTH, LANES = 12, 3, 3


class Reference:
    """What a replay should hold, kept in lists: rows are (lane, time) -> ending."""

    def __init__(self) -> None:
        self.open: dict[int, list] = {}
        self.closed: deque[list] = deque()

    def append(self, keys, endings) -> None:
        for (lane, time), ending in zip(keys, endings, strict=True):
            if len(self.open.get(lane, [None] * LENGTH)) == LENGTH:
                self.cut([lane])
                if len(self.open) + len(self.closed) == SEGMENTS:
                    self.closed.popleft()
                self.open[lane] = []
            self.open[lane].append(((lane, time), ending))

    def cut(self, lanes) -> None:
        self.closed.extend(self.open.pop(lane) for lane in lanes if lane in self.open)

    def rows(self) -> dict:
        return dict(row for part in [*self.closed, *self.open.values()] for row in part)

    def windows(self, moments: int) -> dict:
        """From each start, the (time, ending) of the rows known to follow."""
        rows, found = self.rows(), {}
        for (lane, time), ending in rows.items():
            if ending or (lane, time + 1) not in rows:
                continue
            seen, now = [], (lane, time)
            while now in rows and len(seen) < moments:
                seen.append((now[1], rows[now]))
                if rows[now]:
                    break
                now = (lane, now[1] + 1)
            found[lane, time] = seen
        return found


lane_sets = st.lists(st.integers(0, LANES - 1), unique=True, min_size=1)
ends = st.lists(st.sampled_from([0] * 5 + [1, 2]), min_size=LANES, max_size=LANES)
operation = st.one_of(
    st.tuples(st.just("append"), lane_sets, ends),
    st.tuples(st.just("append"), lane_sets, st.just([0] * LANES)),
    st.tuples(st.just("cut"), lane_sets, st.just([])),
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(operation, max_size=60), st.integers(1, 5), st.integers(0, 6))
def test_a_replay_holds_what_a_slow_reference_holds(counting, operations, time, lookahead):
    replay = counting.small(SEGMENTS, LENGTH)
    stream, reference = counting.stream(replay), Reference()
    for kind, lanes, endings in operations:
        if kind == "cut":
            stream.cut(lanes)
            reference.cut(lanes)
        else:
            endings = endings[: len(lanes)]
            reference.append([(i, stream.time.get(i, 0)) for i in lanes], endings)
            stream.append(lanes, endings)
    expected = reference.windows(time + lookahead + 1)
    assert replay.rows == len(reference.rows())
    assert replay.starts == len(expected)
    if not expected:
        return
    window = counting.every(replay, time, lookahead)
    found = {
        (int(o[0, 0]), int(o[0, 2])): [
            (int(t), int(e)) for t, e in zip(o[k, 2], end[k], strict=True)
        ]
        for o, k, end in zip(window.observation, window.known, window.ending, strict=True)
    }
    assert found == expected


def test_no_chain_leads_to_a_segment_in_another_use(counting):
    replay = counting.small(SEGMENTS, LENGTH)
    stream, ledger = counting.stream(replay), replay.store.ledger
    rng = np.random.default_rng(0)
    for _ in range(300):
        stream.append(np.flatnonzero([1, *rng.integers(0, 2, LANES - 1)]).tolist())
        if rng.random() < 0.05:
            stream.cut([int(rng.integers(LANES))])
        linked = np.flatnonzero(ledger.next != NONE)
        assert np.all(ledger.serial[ledger.next[linked]] > ledger.serial[linked])
        assert np.all(ledger.used[linked] == LENGTH)
        assert np.all(ledger.used[ledger.next[linked]] > 0)


def test_an_open_segment_outlives_any_number_of_others(counting):
    replay = counting.small(SEGMENTS, LENGTH)
    stream = counting.stream(replay)
    stream.append([2])
    for _ in range(10 * SEGMENTS * LENGTH):
        stream.append([0, 1])
    stream.append([2])
    window = counting.every(replay, 1, 0)
    assert np.array_equal(window.observation[window.observation[:, 0, 0] == 2][0, :, 2], [0, 1])


def test_the_oldest_rows_go_first(counting):
    replay = counting.small(8, 3)
    stream = counting.stream(replay)
    for _ in range(100):
        stream.append([0])
    assert replay.rows == 7 * 3 + 1  # 33 full segments, and one with row 99
    kept = counting.every(replay, 1, 0).reward[:, 0]
    assert sorted(kept) == list(range(78, 99))


def test_too_many_open_lanes_are_refused(counting):
    stream = counting.stream(counting.small(8, 3))
    stream.append([0, 1])
    with pytest.raises(ValueError, match="3 open lanes need 12 segments"):
        stream.append([2])
    stream.cut([0])
    stream.append([2])


def test_lanes_must_be_distinct_and_in_range(counting):
    stream = counting.stream(counting.small(8, 3))
    for lanes in ([0, 0], [8], [-1]):
        with pytest.raises(ValueError, match="must be distinct and lie in 0 … 7"):
            stream.append(lanes)
