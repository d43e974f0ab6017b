"""What a journal restores is what was saved, bit for bit, wherever the process was killed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero.data.journal import Journal, JournalError
from scalezero.envs.spec import Discrete, Image


def run(stream, steps: int, seed: int) -> None:
    """Appends, episode ends, cuts and updates, in an order that depends on `seed`."""
    rng, replay = np.random.default_rng(seed), stream.replay
    for _ in range(steps):
        lanes = np.flatnonzero([1, *rng.integers(0, 2, 2)]).tolist()
        stream.append(lanes, rng.choice([0, 0, 0, 0, 0, 1, 2], len(lanes)).tolist())
        if rng.random() < 0.1:
            stream.cut([int(rng.integers(3))])
        if rng.random() < 0.2 and replay.starts:
            window = replay.sample(5, 1, 0, 0.5, rng)
            said = [array[:, 0] for array in (window.policy, window.candidates)]
            noise = rng.random(5, np.float32)
            replay.update(window.index[:, 0], window.serial[:, 0], *said, noise)


def same(one, other) -> bool:
    """Do two replays sample the same, and hold the same?"""
    windows = [replay.sample(64, 3, 4, 0.5, np.random.default_rng(0)) for replay in (one, other)]
    pairs = zip(vars(windows[0]).values(), vars(windows[1]).values(), strict=True)
    counters = [(r.rows, r.starts, r.decisions, r.lanes.tolist()) for r in (one, other)]
    return counters[0] == counters[1] and all(np.array_equal(a, b) for a, b in pairs)


def restored(counting, folder, shards, **kind):
    replay = counting.small(16, 4, **kind)
    Journal(folder).restore(replay, shards)
    return replay


@pytest.fixture
def saved(counting, tmp_path):
    """A folder with the three shards of a replay, and the replay."""
    replay = counting.small(16, 4)
    stream, journal = counting.stream(replay), Journal(tmp_path)
    for _ in range(3):
        for _ in range(10):
            stream.append([0])
        shards = journal.save(replay)
    assert len(shards) == 3
    return tmp_path, shards, replay


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 99))
def test_a_restored_replay_is_the_same_and_goes_on_the_same(
    counting, tmp_path_factory, pauses, seed
):
    folder = tmp_path_factory.mktemp("replay")
    replay = counting.small(16, 4)
    stream, journal = counting.stream(replay), Journal(folder)
    for steps in pauses:
        run(stream, 3 + steps, seed + steps)
        shards = journal.save(replay)
    copy = counting.small(16, 4)
    again = Journal(folder)
    again.restore(copy, shards)
    assert same(replay, copy)
    twin = counting.stream(copy, dict(stream.time), dict(stream.episode))
    for each in (stream, twin):
        run(each, 30, seed)
    assert same(replay, copy)
    assert same(replay, restored(counting, folder, again.save(copy)))
    assert same(replay, restored(counting, folder, journal.save(replay)))


def test_pictures_and_discrete_actions_come_back(counting, tmp_path):
    kind = dict(observation=Image(8, 8, 3), action=Discrete(3), candidates=3)
    replay = counting.small(16, 4, **kind)
    run(counting.stream(replay), 60, 0)
    assert same(replay, restored(counting, tmp_path, Journal(tmp_path).save(replay), **kind))


def test_a_save_writes_only_what_changed(counting, tmp_path):
    replay = counting.small(64, 32)
    stream, journal = counting.stream(replay), Journal(tmp_path)
    for _ in range(32 * 60):
        stream.append([0])
    journal.save(replay)
    stream.append([0])
    first, second = (tmp_path / name for name in journal.save(replay))
    assert second.stat().st_size < first.stat().st_size / 5
    with np.load(second) as arrays:
        assert len(arrays["segment"]) == 2  # the new one, and the one it is chained to


def test_nothing_new_writes_nothing(saved):
    folder, shards, replay = saved
    journal = Journal(folder)
    before = sorted(os.listdir(folder))
    fresh = type(replay)(replay.task, 2, 1 << 24, 64, 4)
    journal.restore(fresh, shards)
    assert journal.save(fresh) == shards
    assert sorted(os.listdir(folder)) == before


def test_superseded_shards_drop_off_and_are_pruned(counting, tmp_path):
    replay = counting.small(16, 4)
    stream, journal = counting.stream(replay), Journal(tmp_path)
    kept = []
    for _ in range(40):
        for _ in range(8):
            stream.append([0])
        shards = journal.save(replay)
        assert len(shards) <= 10  # the ring holds 8 saves
        kept = [*kept[-1:], shards]
        journal.prune(name for names in kept for name in names)
        assert len(os.listdir(tmp_path)) <= 11
    restored(counting, tmp_path, kept[0])
    assert same(replay, restored(counting, tmp_path, kept[1]))


def test_after_a_restart_the_lanes_can_be_cut(saved, counting):
    folder, shards, replay = saved
    copy = restored(counting, folder, shards)
    assert copy.lanes.tolist() == [0]
    copy.cut(copy.lanes)
    counting.stream(copy, {0: 5000}).append([0])
    assert copy.rows == replay.rows + 1
    window = counting.every(copy, 1, 40)
    last = np.where(window.known, window.observation[..., 2], 0).max(axis=1)
    assert np.all(last == 29)  # nothing from before the cut leads to what came after


def test_an_empty_replay_can_be_saved(counting, tmp_path):
    shards = Journal(tmp_path).save(counting.small(16, 4))
    assert restored(counting, tmp_path, shards).rows == 0


def test_an_older_checkpoint_survives_going_back_to_it(saved, counting):
    folder, shards, replay = saved
    old = restored(counting, folder, shards[:1])
    journal, copy = Journal(folder), counting.small(16, 4)
    journal.restore(copy, shards[:1])
    run(counting.stream(copy, {i: 5000 for i in range(3)}), 20, 9)
    journal.save(copy)
    journal.prune(shards)
    assert same(old, restored(counting, folder, shards[:1]))
    assert same(replay, restored(counting, folder, shards))


@pytest.mark.parametrize("harm", ["truncated", "flipped", "empty"])
def test_a_damaged_shard_is_named(saved, counting, harm):
    folder, shards, _ = saved
    path = folder / shards[1]
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"truncated": len(content) // 2, "empty": 0}.get(harm)])
    with pytest.raises(JournalError, match=f"{shards[1]}: this shard of the replay is damaged"):
        restored(counting, folder, shards)


def test_a_missing_shard_is_named(saved, counting):
    folder, shards, _ = saved
    (folder / shards[0]).unlink()
    with pytest.raises(JournalError, match=f"{shards[0]}: this shard of the replay is missing"):
        restored(counting, folder, shards)


def test_shards_that_do_not_belong_together_are_refused(saved, counting):
    folder, shards, _ = saved
    with pytest.raises(JournalError, match="do not belong together"):
        restored(counting, folder, shards[1:])


def test_a_replay_of_another_layout_is_refused(saved, counting):
    folder, shards, _ = saved
    with pytest.raises(JournalError, match="was saved as toy/count: 16 segments of 4 rows"):
        Journal(folder).restore(counting.small(8, 4), shards)


def test_only_a_fresh_replay_is_restored_into(saved):
    folder, shards, replay = saved
    with pytest.raises(JournalError, match="only a fresh replay"):
        Journal(folder).restore(replay, shards)


def test_what_a_killed_save_left_behind_is_ignored_and_pruned(saved, counting):
    folder, shards, replay = saved
    (folder / "000003.partial").write_bytes(b"half of a sh")
    journal, copy = Journal(folder), counting.small(16, 4)
    journal.restore(copy, shards)
    assert same(replay, copy)
    journal.prune(shards)
    assert sorted(os.listdir(folder)) == sorted(shards)


KILLED = """
import sys
from pathlib import Path
import numpy as np
from scalezero.data.journal import Journal
from scalezero.data.replay import Replay
from scalezero.envs.spec import Discrete, Image, Task

task = Task(name="toy", observation=Image(64, 64, 3), action=Discrete(2), action_repeat=1,
            max_decisions=9, floor=0.0, ceiling=1.0, target=1.0, source="none")
replay, journal, zero = Replay(task, 2, 1 << 26, 4096), Journal(Path(sys.argv[1])), np.zeros(1)
for step in range(10**6):
    for i in range(64):
        seen = np.full((1, 64, 64, 3), step % 256, np.uint8)
        replay.append(zero.astype(int), seen, zero[:, None], np.zeros((1, 2)),
                      np.zeros((1, 2, 1)), zero, np.array([float(step)]), np.zeros(1, np.uint8))
    print(step, *journal.save(replay), flush=True)
"""


def test_a_process_killed_while_saving_loses_only_what_it_had_not_saved(counting, tmp_path):
    from scalezero.data.replay import Replay

    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    step, *shards = next(line for line in reversed(lines) if line.endswith("\n")).split()
    task = counting.task("toy", Image(64, 64, 3), Discrete(2))
    replay = Replay(task, 2, 1 << 26, 4096)
    Journal(tmp_path).restore(replay, shards)
    assert replay.decisions == 64 * (int(step) + 1)
    window = counting.every(replay, 1, 2)
    reward = window.reward[window.known[:, :-1]]
    assert reward.max() == int(step)
    shown = window.observation[:, :-1, 0, 0, 0][window.known[:, :-1]]
    assert np.array_equal(shown, reward.astype(np.uint8))


def test_pruning_spares_what_the_next_save_builds_on(saved, counting):
    folder, shards, replay = saved
    journal, copy = Journal(folder), counting.small(16, 4)
    journal.restore(copy, shards)
    journal.prune([])
    counting.stream(copy, {0: 30}).append([0])
    assert restored(counting, folder, journal.save(copy)).rows == replay.rows + 1
