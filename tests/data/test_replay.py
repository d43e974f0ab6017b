"""Windows are aligned, known where they should be, and drawn uniformly."""

import math

import numpy as np
import pytest

from scalezero.data.replay import Replay
from scalezero.envs.spec import Continuous, Discrete, Image, Vector


def full(counting, **kind):
    """Two lanes, several times round the ring, with episodes that end both ways and a cut."""
    replay = counting.small(16, 4, **kind)
    stream = counting.stream(replay)
    for step in range(120):
        stream.append([0, 1], [2 * (step % 9 == 8), int(step % 5 == 4)])
        if step == 110:
            stream.cut([1])
    return replay


def test_every_entry_of_a_window_is_of_its_row(counting):
    window = counting.every(full(counting), 3, 6)
    known, time = window.known, window.observation[..., 2]
    lane, episode = window.observation[..., 0], window.observation[..., 1]
    for axis in (lane, episode):
        assert np.all(axis[known] == np.broadcast_to(axis[:, :1], axis.shape)[known])
    assert np.all((time - np.arange(10) == time[:, :1])[known])
    assert np.array_equal(window.reward[known[:, :-1]], time[:, :-1][known[:, :-1]])
    assert np.array_equal(window.value[known], time[known] + 0.5)
    acted = known[:, :-1]
    assert np.array_equal(window.action[acted][:, 1], time[:, :-1][acted] + 0.25)
    soon = known[:, :3]
    assert np.array_equal(window.policy[soon][:, 1], time[:, :3][soon] + 0.25)
    assert np.array_equal(window.candidates[soon][:, 1, 1], time[:, :3][soon] + 3 / 8)


def test_windows_cross_the_borders_of_segments(counting):
    replay = counting.small(8, 3)
    stream = counting.stream(replay)
    for _ in range(200):
        stream.append([0])
    window = counting.every(replay, 5, 5)
    assert window.known.all(axis=1).sum() == replay.rows - 10
    assert len(np.unique(window.index // 3, axis=0)[0]) == 11


def test_a_window_ends_with_its_episode_and_says_how(counting):
    window = counting.every(full(counting), 2, 8)
    final = window.ending > 0
    assert np.all(final.sum(axis=1) <= 1)
    after = np.cumsum(final, axis=1) - final > 0
    assert not np.any(window.known & after)
    assert np.all(window.known[final])
    lane = window.observation[..., 0]
    assert set(window.ending[final & (lane == 0)]) == {2}
    assert set(window.ending[final & (lane == 1)]) == {1}


def test_a_start_is_known_and_not_final_and_has_a_successor(counting):
    window = counting.every(full(counting), 1, 0)
    assert np.all(window.known)
    assert np.all(window.ending[:, 0] == 0)


def test_what_is_unknown_is_zero(counting):
    window = counting.every(full(counting), 4, 4)
    unknown = ~window.known
    assert unknown.any()
    for name in ("observation", "action", "policy", "candidates", "value", "reward", "ending"):
        array = getattr(window, name)
        assert not np.any(array[unknown[:, : array.shape[1]]]), name
    assert np.all(window.serial[unknown] == -1)


def test_rows_beyond_a_cut_are_unknown(counting):
    replay = counting.small(8, 3)
    stream = counting.stream(replay)
    for _ in range(5):
        stream.append([0])
    stream.cut([0])
    for _ in range(4):
        stream.append([0])
    window = counting.every(replay, 1, 5)
    rows = dict(zip(window.reward[:, 0].tolist(), window.known.sum(axis=1).tolist(), strict=True))
    assert rows == {0: 5, 1: 4, 2: 3, 3: 2, 1005: 4, 1006: 3, 1007: 2}
    assert replay.rows == 9


def test_starts_are_uniform(counting):
    replay, draws = full(counting), 20_000
    window = replay.sample(draws, 1, 0, 0.0, np.random.default_rng(1))
    places, counts = np.unique(window.index[:, 0], return_counts=True)
    assert len(places) == replay.starts
    expected = draws / replay.starts
    chi_square = np.sum((counts - expected) ** 2) / expected
    assert abs(chi_square - replay.starts) < 4 * np.sqrt(2 * replay.starts)


@pytest.mark.parametrize("recent", [0.5, 1.0])
def test_the_newest_fifth_of_segments_gets_its_share_on_top(counting, recent):
    replay, draws = full(counting), 20_000
    starts, serial = replay.store.ledger.starts, replay.store.ledger.serial
    used = sorted(np.flatnonzero(starts), key=lambda segment: serial[segment])
    newest = used[-math.ceil(0.2 * len(used)) :]
    window = replay.sample(draws, 1, 0, recent, np.random.default_rng(1))
    share = np.mean(np.isin(window.index[:, 0] // replay.store.length, newest))
    expected = recent + (1 - recent) * starts[newest].sum() / starts.sum()
    assert share == pytest.approx(expected, abs=0.02)


def test_sampling_depends_only_on_the_key(counting):
    replay = full(counting)
    first, second = (replay.sample(9, 2, 2, 0.5, np.random.default_rng(5)) for _ in range(2))
    for name, array in vars(first).items():
        assert np.array_equal(array, getattr(second, name))


def test_an_empty_replay_says_so(counting):
    replay = counting.small()
    counting.stream(replay).append([0])
    assert replay.starts == 0
    with pytest.raises(ValueError, match="nothing to sample yet"):
        replay.sample(1, 1, 0, 0.5, np.random.default_rng(0))


def test_decisions_count_all_that_were_ever_added_but_final_rows(counting):
    assert full(counting).decisions == 2 * 120 - 120 // 9 - 120 // 5


def test_a_discrete_task_rebuilds_its_candidates(counting):
    replay = full(counting, action=Discrete(4), candidates=4)
    assert "candidates" not in replay.store.columns
    window = counting.every(replay, 3, 0)
    assert window.candidates.shape == (replay.starts, 3, 4, 1)
    assert np.all(window.candidates[..., 0] == np.arange(4))


def test_the_candidates_of_a_discrete_task_are_all_its_actions(counting):
    with pytest.raises(ValueError, match="2 candidates were asked for"):
        counting.small(action=Discrete(4), candidates=2)


@pytest.mark.parametrize("observation", [Vector(7), Image(8, 8, 3)])
@pytest.mark.parametrize("action", [Discrete(5), Continuous(3)])
def test_the_byte_budget_is_used_and_kept(counting, observation, action):
    budget = 100_000
    replay = Replay(counting.task(observation=observation, action=action), 5, budget, 10**9)
    assert budget * 0.8 < replay.bytes <= budget
    stream = counting.stream(replay)
    before = replay.bytes
    for _ in range(40):
        stream.append([0, 1])
    assert replay.bytes == before


def test_the_row_limit_is_kept(counting):
    replay = Replay(counting.task(), 2, 1 << 24, max_rows=150, segment=32)
    stream = counting.stream(replay)
    for _ in range(400):
        stream.append([0])
    assert 96 < replay.rows <= 128


def test_a_budget_too_small_for_its_lanes_is_refused(counting):
    with pytest.raises(ValueError, match=r"holds 7 segments, but 2 lanes need 8; give it at least"):
        Replay(counting.task(), 2, 1 << 24, max_rows=7 * 32, lanes=2)


def test_frames_are_stored_once_and_as_bytes(counting):
    observation = Image(16, 16, 3)
    replay = counting.small(16, 4, observation=observation, action=Discrete(2))
    frames = replay.store.columns["observation"]
    assert frames.dtype == np.uint8
    assert frames.nbytes == 64 * 16 * 16 * 3
    assert replay.bytes < frames.nbytes * 1.1
    stream = counting.stream(replay)
    for _ in range(130):
        stream.append([0])
    window = counting.every(replay, 4, 4)
    assert window.observation.dtype == np.uint8
    shown, time = window.observation[..., 0, 0, 0], window.value - 0.5
    assert np.array_equal(shown[window.known], time[window.known].astype(np.uint8))


def test_wrong_rows_are_refused_before_anything_is_written(counting):
    replay = counting.small()
    good = dict(
        lane=np.array([0]),
        observation=np.zeros((1, 3), np.float32),
        action=np.zeros((1, 2), np.float32),
        policy=np.zeros((1, 2), np.float32),
        candidates=np.zeros((1, 2, 2), np.float32),
        value=np.zeros(1, np.float32),
        reward=np.zeros(1, np.float32),
        ending=np.zeros(1, np.uint8),
    )
    with pytest.raises(ValueError, match=r"observation has shape \(1, 4\), but must have \(1, 3\)"):
        replay.append(**{**good, "observation": np.zeros((1, 4), np.float32)})
    with pytest.raises(ValueError, match="observation is complex128, but must be float32"):
        replay.append(**{**good, "observation": np.zeros((1, 3), complex)})
    assert replay.rows == 0
    replay.append(**good)
    assert replay.rows == 1


def test_an_update_reaches_the_rows_that_are_still_there(counting):
    replay = counting.small(8, 3)
    stream = counting.stream(replay)
    for _ in range(6):
        stream.append([0])
    old = counting.every(replay, 3, 3)
    for _ in range(17):  # the ring's 8 segments are full but for one row; the first is still there
        stream.append([0])
    new = np.full((old.index.size, 2), 77, np.float32)
    revise = lambda: replay.update(
        old.index.ravel(), old.serial.ravel(), new, new[..., None].repeat(2, -1), new[:, 0]
    )
    revise()
    window = counting.every(replay, 1, 0)
    fresh = window.value[:, 0] == 77
    assert np.array_equal(window.reward[fresh, 0], np.arange(6))
    assert np.all(window.policy[fresh] == 77)
    assert np.all(window.candidates[fresh] == 77)
    for _ in range(7):  # writes over the first two segments
        stream.append([0])
    revise()
    assert not np.any(replay.store.columns["value"] == 77)
