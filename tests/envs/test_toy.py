import numpy as np
import pytest

from scalezero.envs.catalog import find, make
from scalezero.envs.check import check
from scalezero.envs.toy import CELLS, PIXELS


def returns(task, envs, policy, episodes):
    """The mean return of the first `episodes` episodes in each environment."""
    env = make(task, envs, seed=0, training=True)
    shown, total, sums, counts = env.reset(), np.zeros(envs), 0.0, np.zeros(envs, int)
    while (counts < episodes).any():
        step = env.step(policy(shown))
        shown, total = step.observation, total + step.score
        ended = step.terminated | step.truncated
        sums += total[ended & (counts < episodes)].sum()
        counts += ended
        total[ended] = 0
    return sums / (envs * episodes)


@pytest.mark.parametrize("name", ["catch", "chain", "corridor", "count", "target"])
def test_toys_keep_their_promises(name):
    check(find(f"toy/{name}"), envs=3, decisions=120, chance=name not in ("chain", "count"))


@pytest.mark.parametrize(("name", "tolerance"), [("catch", 0.1), ("chain", 0.02), ("target", 0.1)])
def test_floors_are_the_returns_of_random_play(name, tolerance):
    task, random = find(f"toy/{name}"), np.random.default_rng(0)

    def policy(shown):
        if name == "target":
            return random.uniform(-1, 1, (len(shown), 2)).astype(np.float32)
        return random.integers(task.action.count, size=(len(shown), 1)).astype(np.float32)

    assert abs(returns(task, 1000, policy, 3) - task.floor) < tolerance


def test_who_follows_the_ball_catches_them_all():
    task = find("toy/catch")

    def follow(shown):
        cells = shown[:, PIXELS // 2 :: PIXELS, PIXELS // 2 :: PIXELS]
        ball = (cells == (255, 196, 0)).all(-1).any(1).argmax(1)
        paddle = (cells[:, CELLS - 1] == (90, 200, 250)).all(-1).argmax(1)
        return (1 + np.sign(ball - paddle))[:, None].astype(np.float32)

    assert returns(task, 200, follow, 2) == task.ceiling


def test_who_points_at_the_target_gets_the_ceiling():
    task = find("toy/target")
    assert returns(task, 10, lambda shown: shown, 1) == pytest.approx(task.ceiling)


def test_who_walks_right_reaches_the_end():
    task = find("toy/chain")
    right = lambda shown: np.ones((len(shown), 1), np.float32)
    assert returns(task, 2, right, 2) == task.ceiling


def test_count_says_where_everything_belongs():
    env = make(find("toy/count"), 2, seed=0, training=True)
    assert env.reset().tolist() == [[0, 0, 0, -1], [1, 0, 0, -1]]
    action = np.array([[1], [2]], np.float32)
    seen = [env.step(action) for _ in range(9)]
    time = [step.observation[:, 2].tolist() for step in seen]
    assert time == [[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [0, 6], [1, 7], [2, 0], [3, 1]]
    assert [s.reward[0] for s in seen] == [1, 11, 21, 31, 41, 0, 1, 11, 21]
    assert [s.reward[1] for s in seen] == [2, 12, 22, 32, 42, 52, 62, 0, 2]
    assert seen[4].terminated.tolist() == [True, False]
    assert seen[6].truncated.tolist() == [False, True]
    assert seen[5].observation[0].tolist() == [0, 1, 0, -1]
    assert seen[8].observation[1].tolist() == [1, 1, 1, 2]


def test_a_toy_does_not_repeat_actions():
    with pytest.raises(
        ValueError, match=r"^toy/catch: action_repeat = 2, but only dmc/ and atari/ have one$"
    ):
        make(find("toy/catch", action_repeat=2), 1, seed=0, training=True)


def test_who_does_not_read_in_the_corridor_gets_the_floor():
    random, task = np.random.default_rng(0), find("toy/corridor")

    def chosen(shown):
        return random.integers([[len(page.actions)] for page in shown]).astype(np.float32)

    first = lambda shown: np.zeros((len(shown), 1), np.float32)
    for policy in (chosen, first):
        assert abs(returns(task, 500, policy, 4) - task.floor) < 0.08
    assert task.floor == pytest.approx(sum((13 / 36) ** room for room in range(1, 9)), abs=1e-3)


def test_who_reads_in_the_corridor_gets_through():
    def read(shown):
        way = lambda page: "go " + page.text.rpartition(" ")[2].rstrip(".")
        return np.array([[p.actions.index(way(p)) if way(p) in p.actions else 0] for p in shown])

    assert returns(find("toy/corridor"), 20, read, 2) == find("toy/corridor").ceiling
