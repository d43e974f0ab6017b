import numpy as np
import pytest

from scalezero.envs import pool as module
from scalezero.envs import toy
from scalezero.envs.catalog import find, make
from scalezero.envs.pool import Pool

TASKS = [find(name) for name in ("toy/count", "toy/target", "gym/CartPole-v1", "toy/catch")]


@pytest.fixture
def pool():
    pool = Pool(TASKS, 3, seed=0, training=True)
    yield pool
    pool.close()


def actions(random):
    return random.integers(2, size=(4, 3, 2)).astype(np.float32)


def test_a_pool_shows_each_task_in_its_slot(pool):
    first = pool.reset()
    assert first.vector.shape == (3, 3, 4) and first.image.shape == (1, 3, 64, 64, 3)
    assert first.vector[0, :, 0].tolist() == [0, 1, 2]
    assert not first.vector[1, :, 2:].any() and first.vector[1, :, :2].all()
    assert not first.reward.any() and not first.terminated.any()
    pool.send(np.ones((4, 3, 2), np.float32))
    step = pool.recv()
    assert step.reward[0].tolist() == [1, 1, 1] and step.reward[2].tolist() == [1, 1, 1]
    assert step.score.shape == step.truncated.shape == (4, 3)


def trajectory(tasks, seed, training):
    pool, random = Pool(tasks, 3, seed=seed, training=training), np.random.default_rng(0)
    seen = [pool.reset()]
    for _ in range(30):
        pool.send(actions(random)[: len(tasks)])
        seen.append(pool.recv())
    pool.close()
    return seen


def same(one, two):
    pairs = zip(one, two, strict=True)
    return all(
        np.array_equal(a, b)
        for x, y in pairs
        for a, b in zip(vars(x).values(), vars(y).values(), strict=True)
    )


def test_a_pool_is_a_function_of_its_seed():
    first = trajectory(TASKS, 0, True)
    assert same(first, trajectory(TASKS, 0, True))
    assert not same(first, trajectory(TASKS, 1, True))


def test_training_and_evaluation_begin_differently():
    train, evaluate = (trajectory(TASKS, 0, training)[0] for training in (True, False))
    assert not np.array_equal(train.vector[2], evaluate.vector[2])
    assert not np.array_equal(train.image, evaluate.image)


def test_a_task_begins_the_same_beside_other_tasks():
    alone = Pool([TASKS[2]], 3, seed=0, training=True)
    beside = Pool(TASKS, 3, seed=0, training=True)
    assert np.array_equal(alone.reset().vector[0], beside.reset().vector[2])
    alone.close()
    beside.close()


def test_reset_begins_again(pool):
    first = pool.reset()
    pool.send(np.ones((4, 3, 2), np.float32))
    assert same([first], [pool.reset()])


def test_a_pool_of_vectors_or_of_images_alone():
    for task, vectors, images in ((TASKS[0], 1, 0), (TASKS[3], 0, 1)):
        pool = Pool([task], 2, seed=0, training=False)
        first = pool.reset()
        assert (len(first.vector), len(first.image)) == (vectors, images)
        pool.close()


class Dying(toy.Target):
    def step(self, action):
        raise FileNotFoundError("physics.bin")


def test_an_environment_that_dies_is_named_with_its_cause(monkeypatch):
    def deadly(task, envs, *, seed, training):
        if task.name == "toy/target":
            return Dying(task, envs, seed)
        return make(task, envs, seed=seed, training=training)

    monkeypatch.setattr(module, "make", deadly)
    pool = Pool(TASKS, 2, seed=0, training=True)
    pool.reset()
    pool.send(np.zeros((4, 2, 2), np.float32))
    cause = r"^toy/target: died in step\(\): FileNotFoundError: physics.bin$"
    with pytest.raises(RuntimeError, match=cause):
        pool.recv()
    pool.close()


def test_a_pool_checks_its_tasks():
    with pytest.raises(
        ValueError, match=r"^toy/count: follows toy/catch, but tasks that show vectors come first"
    ):
        Pool([TASKS[3], TASKS[0]], 1, seed=0, training=True)


def test_two_slots_of_one_task_have_other_episodes():
    pool = Pool([TASKS[2], TASKS[2]], 3, seed=0, training=True)
    shown = pool.reset().vector
    pool.close()
    assert not np.array_equal(shown[0], shown[1])


def test_a_resting_slot_shows_zeros_and_leaves_the_others_as_they_are():
    full = Pool(TASKS, 3, seed=0, training=True)
    rests = Pool(TASKS, 3, seed=0, training=True, active=[slot != 1 for slot in range(4)])
    said = []
    for pool in (full, rests):
        first = pool.reset()
        pool.send(np.zeros((4, 3, 2), np.float32))
        said.append((first, pool.recv()))
        pool.close()
    for one, other in zip(*said, strict=True):
        for name in ("vector", "reward", "score"):
            kept, empty = getattr(one, name), getattr(other, name)
            np.testing.assert_array_equal(np.delete(empty, 1, 0), np.delete(kept, 1, 0))
            assert not empty[1].any()


def test_send_and_recv_alternate(pool):
    pool.reset()
    with pytest.raises(RuntimeError, match="call send"):
        pool.recv()
    pool.send(np.zeros((4, 3, 2), np.float32))
    with pytest.raises(RuntimeError, match="call recv"):
        pool.send(np.zeros((4, 3, 2), np.float32))
