"""A batch holds the right rows in the right slots, and padding where a task is narrower."""

import numpy as np
import pytest

from scalezero.data.mixture import Mixture
from scalezero.envs.spec import NOTHING, Continuous, Discrete, Image, Listed, Text, Vector

PICTURE = Image(8, 8, 3)


def filled(counting, **kind):
    replay = counting.small(16, 4, **kind)
    stream = counting.stream(replay)
    for step in range(90):
        stream.append([0, 1], [2 * (step % 9 == 8), int(step % 5 == 4)])
    return replay


@pytest.fixture(scope="module")
def mixture(counting):
    """Tasks of every kind; the vector tasks and the picture tasks are interleaved."""
    return Mixture(
        [
            filled(counting, observation=Vector(3), action=Continuous(2), candidates=3),
            filled(counting, observation=PICTURE, action=Discrete(4), candidates=4),
            filled(counting, observation=Vector(5), action=Discrete(2), candidates=2),
            filled(counting, observation=PICTURE, action=Discrete(2), candidates=2),
        ]
    )


def test_the_shapes_do_not_depend_on_which_tasks_fill_the_slots(mixture):
    shapes = set()
    for task in ([0, 2, 1], [2, 2, 3], [0, 0, 1]):
        batch = mixture.sample(np.array(task), 6, 3, 2, 0.5, 5, np.random.default_rng(0))
        shapes.add(tuple((name, array.shape) for name, array in vars(batch).items()))
    assert shapes == {
        (
            ("task", (3,)),
            ("vector", (5, 2, 6, 6, 5)),
            ("image", (5, 1, 6, 6, 8, 8, 3)),
            ("text", (5, 0, 6, 6, 1)),
            ("action", (5, 3, 6, 5, 2)),
            ("policy", (5, 3, 6, 3, 4)),
            ("candidates", (5, 3, 6, 3, 4, 2)),
            ("valid", (5, 3, 6, 3, 4)),
            ("value", (5, 3, 6, 6)),
            ("reward", (5, 3, 6, 5)),
            ("ending", (5, 3, 6, 6)),
            ("known", (5, 3, 6, 6)),
        )
    }


def test_a_slot_holds_the_windows_its_replay_would_give(mixture):
    task, rows, batches = np.array([2, 0, 3]), 4, 3
    batch = mixture.sample(task, rows, 2, 3, 0.5, batches, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    for slot, each in enumerate(task):
        window = mixture.replays[each].sample(rows * batches, 2, 3, 0.5, rng)
        count, width = window.candidates.shape[2:]
        seen = batch.vector[:, slot] if slot < 2 else batch.image[:, slot - 2]
        pairs = {
            "observation": seen[..., : window.observation.shape[-1]],
            "action": batch.action[:, slot, ..., :width],
            "policy": batch.policy[:, slot, ..., :count],
            "candidates": batch.candidates[:, slot, ..., :count, :width],
            **{name: getattr(batch, name)[:, slot] for name in ("value", "reward", "ending")},
            "known": batch.known[:, slot],
        }
        for name, array in pairs.items():
            expected = getattr(window, name)
            assert np.array_equal(array.reshape(expected.shape), expected), name


def test_padding_is_zero_and_not_valid(mixture):
    batch = mixture.sample(np.array([0, 2, 1, 3]), 4, 2, 3, 0.5, 3, np.random.default_rng(7))
    assert not batch.vector[:, 0, ..., 3:].any()
    assert not batch.action[:, 1:, ..., 1:].any()
    assert not batch.candidates[:, 1:, ..., 1:].any()
    for slot, count in enumerate([3, 2, 4, 2]):
        assert batch.valid[:, slot, ..., :count].all()
        assert not batch.valid[:, slot, ..., count:].any()
    assert not batch.policy[~batch.valid].any()
    assert not batch.candidates[~batch.valid].any()


def test_a_mixture_of_one_kind_leaves_the_other_empty(counting):
    mixture = Mixture([filled(counting)])
    rng = np.random.default_rng(0)
    batch = mixture.sample(mixture.spread(np.ones(1), 2, rng), 4, 2, 0, 0.5, 3, rng)
    assert batch.image.size == 0
    assert batch.vector.shape == (3, 2, 4, 3, 3)


def test_slots_out_of_order_are_refused(mixture):
    with pytest.raises(ValueError, match="those that show vectors must come first"):
        mixture.sample(np.array([1, 0]), 4, 2, 3, 0.5, 3, np.random.default_rng(7))


def test_pictures_of_two_shapes_are_refused(counting):
    other = counting.small(observation=Image(4, 4, 3))
    with pytest.raises(ValueError, match="must show pictures of one shape"):
        Mixture([counting.small(observation=PICTURE), other])


def test_slots_are_dealt_in_proportion_and_never_across_kinds(mixture):
    rng, weights = np.random.default_rng(3), np.array([1.0, 3.0, 2.0, 1.0])
    dealt = [mixture.spread(weights, 6, rng) for _ in range(2000)]
    assert all((mixture.kind[task] == [0, 0, 0, 1, 1, 1]).all() for task in dealt)
    assert all(task.dtype == np.int32 for task in dealt)
    counts = np.array([np.bincount(task, minlength=4) for task in dealt])
    exact = np.array([1.0, 9 / 4, 2.0, 3 / 4])
    assert np.all(np.abs(counts - exact) < 1)
    assert np.allclose(counts.mean(axis=0), exact, atol=0.05)


def test_solved_tasks_get_no_slots_until_all_of_their_kind_are_solved(mixture):
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert set(mixture.spread(np.array([0.0, 1, 1, 0]), 4, rng)) == {2, 1}
    assert set(mixture.spread(np.array([0.0, 1, 0, 0]), 4, rng)) == {0, 2, 1}


def test_weights_must_be_weights(mixture):
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match="must be finite and ≥ 0"):
            mixture.spread(np.array([bad, 1, 1, 1]), 4, np.random.default_rng(0))


def test_one_slot_cannot_hold_two_kinds(mixture):
    with pytest.raises(ValueError, match="1 slots cannot hold the 2 kinds"):
        mixture.spread(np.ones(4), 1, np.random.default_rng(0))


def test_text_comes_last_and_lists_nothing_beyond_its_actions(counting):
    both = []
    for listed in (2, 4):
        replay = counting.small(candidates=listed, observation=Text(listed), action=Listed(listed))
        for number in range(4):
            seen = np.arange(1 + listed, dtype=np.int32)[None] + number
            zero = np.zeros(1, np.float32)
            policy = np.full((1, listed), 1 / listed, np.float32)
            nothing = np.zeros((1, listed, 1), np.float32)
            replay.append(
                np.zeros(1, int),
                seen,
                zero[:, None],
                policy,
                nothing,
                zero,
                zero,
                np.zeros(1, "u1"),
            )
        both.append(replay)
    mixture = Mixture([filled(counting), *both])
    rng = np.random.default_rng(0)
    task = mixture.spread(np.ones(3), 6, rng)
    assert task.tolist() == [0, 0, 1, 1, 2, 2]
    batch = mixture.sample(task, 4, 2, 1, 0.0, 3, rng)
    assert batch.text.shape == (3, 4, 4, 4, 5)
    assert np.all(batch.text[:, :2, :, :2, 3:] == NOTHING)
    known = batch.known[:, 2:4, :, :2]
    first = batch.text[:, :2, :, :2]
    assert np.all(first[..., 1][known] == first[..., 0][known] + 1)
