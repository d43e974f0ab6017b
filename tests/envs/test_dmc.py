import contextlib

import numpy as np
import psutil
import pytest

from scalezero.envs import dmc
from scalezero.envs.catalog import DMC, find, make
from scalezero.envs.check import check
from scalezero.envs.dmc import CONTROL_STEPS, EnvPool, keys, parts
from scalezero.envs.spec import Vector

common = pytest.importorskip("dm_control.suite.common")
pytest.importorskip("envpool")
# dm_control 1.0.50 does this in `mujoco/index.py`.
pytestmark = pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy:DeprecationWarning")
ENGINES = ["envpool", "dm_control"]


def task(name, engine, **changes):
    return find(f"dmc/{name}", options={"engine": engine}, **changes)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_keeps_its_promises(engine):
    check(task("cartpole-swingup", engine, max_decisions=20))


@pytest.mark.slow
@pytest.mark.parametrize("name", DMC)
def test_every_task_keeps_its_promises(name):
    check(find(f"dmc/{name}"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "length"), [("pendulum-swingup", 125), ("reacher-easy", 250)])
def test_all_environments_are_truncated_at_the_time_limit(engine, name, length):
    known = task(name, engine)
    env = make(known, 2, seed=0, training=True)
    env.reset()
    action = np.zeros((2, known.action.width), np.float32)
    steps = [env.step(action) for _ in range(length + 2)]
    assert length == known.max_decisions == CONTROL_STEPS // known.action_repeat
    assert not any(step.terminated.any() for step in steps)
    assert [i for i, step in enumerate(steps, 1) if step.truncated.any()] == [length]
    assert steps[length - 1].truncated.all() and not steps[length].reward.any()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_action_repeat_that_does_not_divide_the_episode_shortens_the_last_decision(engine):
    known = task("pendulum-swingup", engine, action_repeat=300)
    assert known.max_decisions == 4
    check(known)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_reward_is_the_sum_over_the_repeated_action(engine):
    once = make(task("cartpole-balance", engine, action_repeat=1), 2, seed=3, training=True)
    four = make(task("cartpole-balance", engine), 2, seed=3, training=True)
    assert np.array_equal(once.reset(), four.reset())
    random = np.random.default_rng(0)
    for _ in range(10):
        action = random.uniform(-1, 1, (2, 1)).astype(np.float32)
        parts = [once.step(action) for _ in range(4)]
        whole = four.step(action)
        assert np.allclose(sum(part.reward for part in parts), whole.reward)
        assert np.array_equal(parts[-1].observation, whole.observation)


@pytest.mark.parametrize("name", DMC)
def test_observations_are_those_of_dm_control_in_its_order(name):
    from dm_control import suite

    spec = suite.load(*parts(f"dmc/{name}")).observation_spec()
    assert tuple(spec) == keys(*parts(f"dmc/{name}"))
    size = sum(int(np.prod(part.shape)) for part in spec.values())
    assert find(f"dmc/{name}").observation == Vector(size)


def place(physics, domain, seen):
    """Give dm_control the state that an observation shows, where one does."""
    with physics.reset_context():
        match domain:
            case "cartpole":
                physics.data.qpos[:] = seen[0], np.arctan2(seen[2], seen[1])
            case "pendulum":
                physics.data.qpos[:] = np.arctan2(seen[1], seen[0])
            case "walker":
                torso, *limbs = np.arctan2(seen[1:14:2], seen[0:14:2])
                above = [torso, *limbs[:2], torso, *limbs[3:5]]
                physics.data.qpos[:3] = (
                    seen[14] - physics.named.model.body_pos["torso"][2],
                    0,
                    torso,
                )
                joints = np.subtract(above, limbs)
                physics.data.qpos[3:] = np.arctan2(np.sin(joints), np.cos(joints))
            case "cheetah" | "hopper":
                physics.data.qpos[1:] = seen[: physics.model.nq - 1]
            case "ball_in_cup":
                physics.data.qpos[:] = seen[:4]
        last = len(seen) - 2 * (domain == "hopper")  # whose sense of touch comes last
        physics.data.qvel[:] = seen[last - physics.model.nv : last]


@pytest.mark.parametrize(
    "name",
    [
        *("cartpole-swingup", "pendulum-swingup", "cheetah-run"),
        *("ball_in_cup-catch", "hopper-stand", "walker-walk"),
    ],
)
def test_both_engines_go_the_same_way_from_the_same_state(name):
    fast = task(name, "envpool")
    slow = make(task(name, "dm_control"), 1, seed=0, training=True)
    fast = make(fast, 1, seed=0, training=True)
    slow.reset()
    domain, _ = parts(f"dmc/{name}")
    place(slow._engines[0].physics, domain, fast.reset()[0])
    random = np.random.default_rng(0)
    for _ in range(12):
        action = random.uniform(-1, 1, (1, find(f"dmc/{name}").action.width)).astype(np.float32)
        one, two = fast.step(action), slow.step(action)
        assert np.allclose(one.observation, two.observation, atol=2e-3)
        assert np.allclose(one.reward, two.reward, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", DMC)
def test_what_is_left_out_of_a_model_moves_nothing(name, engine, monkeypatch):
    whole, seen = common.ASSETS[f"./{dmc.SKY}"], []
    for models, sky in ((dmc._without_sky, dmc.NO_SKY), (contextlib.nullcontext, whole)):
        monkeypatch.setattr(dmc, "_without_sky", models)
        monkeypatch.setattr(dmc, "NO_SKY", sky)
        known = task(name, engine)
        env = make(known, 2, seed=0, training=True)
        random, width = np.random.default_rng(0), known.action.width
        actions = random.uniform(-1, 1, (30, 2, width)).astype(np.float32)
        seen.append([env.reset(), *(env.step(each).observation for each in actions)])
        env.close()
    assert np.array_equal(*seen)
    assert common.ASSETS[f"./{dmc.SKY}"] == whole


@pytest.mark.parametrize("engine", ENGINES)
def test_an_environment_takes_no_memory_for_what_it_does_not_show(engine):
    def made() -> list:
        envs = [make(task("cartpole-swingup", engine), 8, seed=0, training=True) for _ in range(4)]
        for each in envs:
            each.reset()
        return envs

    memory, first = psutil.Process().memory_info, made()  # and what all share
    before = memory().rss
    second = made()
    taken = memory().rss - before
    for each in (*first, *second):
        each.close()
    assert taken < 32 * 4_000_000  # with their sky: 12 MB each


def test_models_that_lie_elsewhere_are_taken_as_they_are(tmp_path):
    with dmc._without_sky(tmp_path) as base:
        assert base == tmp_path


def test_the_faster_engine_is_the_default_and_an_unknown_one_is_refused():
    assert isinstance(make(find("dmc/cartpole-balance"), 1, seed=0, training=True), EnvPool)
    wrong = find("dmc/cartpole-balance", options={"engine": "bullet"})
    with pytest.raises(ValueError, match=r"^dmc/cartpole-balance: engine = 'bullet' is not one"):
        make(wrong, 1, seed=0, training=True)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    seen = []
    for count in (1, threads):
        known = find("dmc/cartpole-balance", options={"threads": count})
        env = make(known, 4, seed=0, training=True)
        env.reset()
        seen.append([env.step(np.full((4, 1), 0.5, np.float32)).observation for _ in range(5)])
        env.close()
    assert np.array_equal(*seen)
