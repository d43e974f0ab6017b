import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from scalezero.envs.catalog import GYM, find, make, translation
from scalezero.envs.check import check
from scalezero.envs.gym import describe
from scalezero.envs.spec import Continuous, Discrete, Image, UnknownTask, Vector, seeds


class Rigged(gymnasium.Env):
    """Shows samples of any space, takes any action and pays what `pay` says it is worth."""

    def __init__(self, observation, action, pay=lambda action: 1.0):
        self.observation_space, self.action_space, self._pay = observation, action, pay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation_space.sample(), self._pay(action), False, False, {}


@pytest.fixture
def rig():
    """Registers a `Rigged` environment and names it."""

    def register(observation, action, limit=6, **more):
        gymnasium.register(
            "Rigged-v0",
            entry_point=Rigged,
            max_episode_steps=limit,
            kwargs={"observation": observation, "action": action, **more},
        )
        return "gym/Rigged-v0"

    yield register
    gymnasium.registry.pop("Rigged-v0", None)


BOX = spaces.Box(-1, 1, (3,))
TWO = spaces.Discrete(2)


@pytest.mark.parametrize("name", GYM)
def test_named_environments_keep_their_promises(name):
    check(find(f"gym/{name}"), decisions=210)


@pytest.mark.parametrize("name", GYM)
def test_named_environments_are_what_the_catalog_says(name):
    known, real = find(f"gym/{name}"), describe(f"gym/{name}")
    assert (known.observation, known.action) == (real.observation, real.action)
    assert known.max_decisions == real.max_decisions
    assert known.normalised(known.floor) == 0


def test_the_time_limit_of_cartpole_is_500_decisions_and_no_termination():
    env = make(find("gym/CartPole-v1"), 4, seed=0, training=True)
    shown = env.reset()
    for time in range(1, 501):
        lean = shown[:, 2] + 0.3 * shown[:, 3] + 0.05 * shown[:, 0] + 0.1 * shown[:, 1]
        step = env.step((lean > 0).astype(np.float32)[:, None])
        shown = step.observation
        assert not step.terminated.any() and step.truncated.all() == (time == 500)
    restart = env.step(np.zeros((4, 1), np.float32))
    assert not restart.reward.any() and np.abs(restart.observation).max() <= 0.05


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (BOX, Vector(3)),
        (spaces.Box(-1, 1, (2, 3), np.float64), Vector(6)),
        (spaces.Box(-np.inf, np.inf, (2,)), Vector(2)),
        (spaces.Discrete(5, start=2), Vector(5)),
        (spaces.MultiBinary(4), Vector(4)),
        (spaces.Dict(place=BOX, door=TWO), Vector(5)),
        (spaces.Tuple((BOX, spaces.Dict(a=BOX))), Vector(6)),
        (spaces.Box(0, 255, (20, 30, 3), np.uint8), Image(64, 64, 3)),
        (spaces.Box(0, 255, (1, 84, 100), np.uint8), Image(64, 64, 3)),
    ],
)
def test_observations_of_many_spaces(rig, space, expected):
    task = find(rig(space, TWO))
    assert task.observation == expected
    check(task)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Discrete(3), Discrete(3)),
        (spaces.Discrete(3, start=-1), Discrete(3)),
        (spaces.MultiDiscrete([2, 3]), Discrete(6)),
        (spaces.MultiDiscrete([2, 3], start=[1, 1]), Discrete(6)),
        (spaces.MultiDiscrete([[2, 3], [2, 2]]), Discrete(24)),
        (spaces.MultiBinary(3), Discrete(8)),
        (spaces.Box(-2, 5, (2,)), Continuous(2)),
        (spaces.Box(0, 1, (2, 2), np.float64), Continuous(4)),
        (spaces.Box(0, 255, (1,), np.uint8), Continuous(1)),
    ],
)
def test_actions_of_many_spaces(rig, space, expected):
    task = find(rig(BOX, space))
    assert task.action == expected
    check(task)


def test_every_combination_of_choices_is_one_choice(rig):
    space = spaces.MultiDiscrete([2, 3], start=[1, 4])
    task = find(rig(BOX, space, pay=lambda action: float(10 * action[0] + action[1])))
    env = make(task, 6, seed=0, training=True)
    env.reset()
    paid = env.step(np.arange(6, dtype=np.float32)[:, None]).reward
    assert paid.tolist() == [14, 15, 16, 24, 25, 26]


def test_a_box_is_reached_from_its_bounds(rig):
    task = find(rig(BOX, spaces.Box(-2, 6, (1,)), pay=lambda action: float(action[0])))
    env = make(task, 4, seed=0, training=True)
    env.reset()
    paid = env.step(np.array([[-1], [0], [1], [9]], np.float32)).reward
    assert paid.tolist() == [-2, 2, 6, 6]


@pytest.mark.parametrize(
    ("seen", "taken"),
    [
        (BOX, spaces.Box(-2, 6, (1,))),
        (spaces.Dict(place=BOX, door=TWO), spaces.MultiDiscrete([2, 3], start=[1, 1])),
        (spaces.Discrete(5, start=2), spaces.Discrete(3, start=-1)),
        (spaces.Box(0, 255, (20, 30, 3), np.uint8), TWO),
    ],
)
def test_a_translation_says_what_the_vector_of_a_task_says(rig, seen, taken):
    task = find(rig(seen, taken))
    words = translation(task)
    shown = make(task, 1, seed=3, training=False).reset()[0]
    own = gymnasium.make("Rigged-v0", disable_env_checker=True)
    state, _ = own.reset(seed=seeds(3, 1).tolist()[0])
    np.testing.assert_array_equal(words.see(state), shown)
    assert words.see(state).dtype == task.observation.dtype
    action = np.zeros(task.action.width, np.float32)
    own.step(words.act(action))  # which checks that the space contains it


@pytest.mark.parametrize(
    ("observation", "action", "complaint"),
    [
        (spaces.Sequence(TWO), TWO, "cannot be flattened"),
        (BOX, spaces.Box(-np.inf, np.inf, (2,)), "neither choices nor a bounded Box"),
        (BOX, spaces.Dict(a=TWO), "neither choices nor a bounded Box"),
        (BOX, spaces.MultiBinary(40), "more than 4096"),
    ],
)
def test_spaces_that_cannot_be_used_are_named(rig, observation, action, complaint):
    with pytest.raises(ValueError, match=f"^gym/Rigged-v0: its .*{complaint}.*; wrap"):
        find(rig(observation, action))


def test_an_endless_environment_gets_a_time_limit(rig):
    task = find(rig(BOX, TWO, limit=None))
    assert task.max_decisions == 1000
    check(find(task.name, max_decisions=5))


def test_a_picture_keeps_its_brightness(rig):
    space = spaces.Box(0, 255, (96, 160, 3), np.uint8)
    env = make(find(rig(space, TWO)), 2, seed=0, training=True)
    picture = np.zeros((2, 96, 160, 3), np.uint8)
    picture[:, :48, :, 0] = 200
    small = env._see(picture)
    assert (small[:, :32] == (200, 0, 0)).all() and not small[:, 32:].any()
    gradient = np.broadcast_to(np.arange(160, dtype=np.uint8)[:, None], picture.shape)
    assert np.allclose(env._see(gradient)[0, 0, :, 0], np.arange(64) * 2.5 + 0.75, atol=0.51)


def test_an_environment_of_ones_own_is_one_line(tmp_path, monkeypatch):
    code = (
        "import gymnasium\n"
        "gymnasium.register('Own-v0', 'gymnasium.envs.classic_control:PendulumEnv', "
        "max_episode_steps=9)\n"
    )
    (tmp_path / "own_worlds.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    task = find("gym/own_worlds:Own-v0", ceiling=0.0)
    assert (task.observation, task.max_decisions) == (Vector(3), 9)
    check(task)


@pytest.mark.parametrize("name", ["gym/CartPol-v1", "gym/CartPole-v99", "gym/none/Such-v0"])
def test_an_unknown_id_is_an_unknown_task(name):
    with pytest.raises(UnknownTask, match=f"^{name}: no such Gymnasium environment: "):
        find(name)


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(UnknownTask, match=r"^gym/no_such_module:X-v0: the module no_such_module"):
        find("gym/no_such_module:X-v0")
