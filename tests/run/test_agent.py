"""A saved agent acts and scores as it did before it was saved."""

import gymnasium
import jax
import numpy as np
import pytest
from tiny import SETTINGS, tiny

import scalezero
from scalezero.envs.pool import Pool
from scalezero.run.evaluate import Evaluator, evaluate
from scalezero.run.folder import RunError, RunFolder
from scalezero.run.run import Run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory after a little training, and the world that was saved in it."""
    config = tiny(
        tasks=["toy/target", "toy/catch"],
        model=SETTINGS["model"] | {"vit_patch": 32},
        data=SETTINGS["data"] | {"replay_bytes": 20_000_000},
    )
    folder = RunFolder.open(tmp_path_factory.mktemp("runs") / "r", config)
    run = Run(config, folder)
    for _ in range(24):
        run.turn()
    run.save()
    run.close()
    return folder, run


def test_a_loaded_agent_scores_as_before_it_was_saved(saved):
    folder, run = saved
    evaluator = Evaluator(run.tasks, range(2), run.config, run.texts, seed=7)
    before = evaluator.play(run.state.world, 5, key=jax.random.key(7))
    evaluator.close()
    after = evaluate(folder.path, episodes=5, seed=7)
    assert after.returns == before.returns


def test_evaluating_one_task_alone_gives_that_task_only(saved):
    folder, _ = saved
    result = evaluate(folder.path, episodes=3, tasks=["toy/catch"])
    assert list(result.means) == ["toy/catch"]
    assert len(result.as_json()["tasks"]["toy/catch"]["returns"]) == 3
    with pytest.raises(ValueError, match="toy/cache is not a task of this run; it has"):
        evaluate(folder.path, episodes=3, tasks=["toy/cache"])


def test_a_narrow_task_beside_a_wider_one_is_evaluated_alone(tmp_path):
    config = tiny(tasks=["toy/target", "toy/chain"])
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    run.turn()
    run.save()
    run.close()
    result = evaluate(tmp_path / "r", episodes=2, tasks=["toy/target"])
    assert len(result.returns[0]) == 2


def test_an_agent_acts_on_one_observation_of_any_of_its_tasks(saved):
    folder, _ = saved
    agent = scalezero.load(folder.path)
    action = agent.act(np.zeros(2), task="toy/target")
    assert action.shape == (2,)
    assert np.all(np.abs(action) <= 1)
    assert agent.act(np.zeros((64, 64, 3), np.uint8), task="toy/catch") in (0, 1, 2)
    with pytest.raises(ValueError, match=r"observation has shape \(3,\), but must have \(2,\)"):
        agent.act(np.zeros(3), task="toy/target")
    with pytest.raises(ValueError, match="not a task of this agent; it has toy/target, toy/catch"):
        agent.act(np.zeros(2), task="toy/chain")


def test_an_agent_speaks_the_language_of_a_gymnasium_environment(tmp_path):
    config = tiny(tasks=["gym/Pendulum-v1", "toy/target"])
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    run.save()
    run.close()
    agent, env = scalezero.load(tmp_path / "r"), gymnasium.make("Pendulum-v1")
    state, _ = env.reset(seed=0)
    reached = []
    for _ in range(12):
        action = agent.act(state, task="gym/Pendulum-v1")
        assert env.action_space.contains(action)
        reached.append(abs(action.item()))
        state, *_ = env.step(action)
    assert max(reached) > 0


def test_two_loaded_agents_act_alike(saved):
    folder, run = saved
    agent = scalezero.load(folder.path)
    pool = Pool(run.tasks, 2, seed=0, training=False)
    steps = pool.reset()
    pool.close()
    one = agent.act(steps.vector[0, 0], task="toy/target")
    again = scalezero.load(folder.path).act(steps.vector[0, 0], task="toy/target")
    np.testing.assert_array_equal(one, again)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    folder = RunFolder.open(tmp_path / "r", tiny())
    with pytest.raises(RunError, match="has no checkpoint yet"):
        scalezero.load(folder.path)


def test_a_damaged_checkpoint_is_named_and_the_older_one_suggested(tmp_path):
    config = tiny()
    folder = RunFolder.open(tmp_path / "r", config)
    run = Run(config, folder)
    for _ in range(2):
        run.turn()
        run.save()
    run.close()
    for file in (folder.checkpoints / "2" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(RunError, match=r"2: this checkpoint cannot be read .* to go on from 1"):
        scalezero.load(folder.path)
