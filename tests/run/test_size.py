import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalezero import configure
from scalezero.agent import search
from scalezero.agent.act import empty_history
from scalezero.agent.optimiser import Optimiser
from scalezero.cli import main
from scalezero.data.mixture import Mixture
from scalezero.run.build import learner_of, replays_of, world_shape
from scalezero.run.check import check, moving

SMALL = {
    "model.embed": "16",
    "model.layers": "1",
    "model.heads": "2",
    "model.vit_embed": "16",
    "model.vit_depth": "1",
    "search.simulations": "4",
    "data.envs": "4",
    "data.groups": "2",
    "data.replay_rows": "1024",
}


@pytest.fixture(scope="module")
def config():
    return configure.resolve(tasks=["dmc/finger-spin", "toy/catch"], flags=SMALL)


def size(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_parameters_and_bytes_are_those_of_a_real_learner(config):
    sizes = check(config)
    state = learner_of(config, Optimiser(config.learn, 1))
    weights = jax.tree.leaves(eqx.filter(state.world, eqx.is_array))
    assert sum(sizes.parameters.values()) == sum(leaf.size for leaf in weights)
    for name, part in (("model", state.world), ("optimiser", state.moments)):
        assert sizes.bytes[name] == size(eqx.filter(part, eqx.is_array))


def test_stages_are_as_large_as_they_become():
    flags = {**SMALL, "dps.on": "true", "dps.stages": "3", "dps.rank": "2"}
    config = configure.resolve(tasks=["dmc/finger-spin", "toy/catch"], flags=flags)
    for stage, said in enumerate(check(config).stages):
        state = learner_of(config, Optimiser(config.learn, 1), stage)
        assert said.model_bytes == size(eqx.filter(state.world, eqx.is_array))
        assert said.optimiser_bytes == size(eqx.filter(state.moments, eqx.is_array))
        assert said.trained == sum(leaf.size for leaf in jax.tree.leaves(moving(state.world)))
        assert said.trained < said.parameters


@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_the_search_tree_is_the_one_that_a_search_grows(monkeypatch, kind):
    flags = {**SMALL, "search.kind": kind, "search.simulations": "20"}
    config = configure.resolve(tasks=["dmc/finger-spin", "toy/catch"], flags=flags)
    searched, trees = search.searched, []

    def spy(*given, **more):
        trees.append(size(searched(*given, **more)))
        return searched(*given, **more)

    def planned(world):
        history = empty_history(world, 2, 2, config.search.context)
        bound = world.bind(jnp.arange(2), 1, jnp.zeros((0, 0)))
        listing = bound.listing(jnp.zeros((0, 2, 1), jnp.int32))
        return search.plan(
            bound, history, listing, config.search, jnp.ones(()), key=jax.random.key(0)
        )

    monkeypatch.setattr(search, "searched", spy)
    eqx.filter_eval_shape(planned, world_shape(config))
    assert check(config).bytes["search tree"] == trees[0]


def test_replays_and_batches_are_as_large_as_said(config):
    sizes, replays = check(config), replays_of(config)
    assert sizes.bytes["replay when full"] == sum(replay.bytes for replay in replays)
    for replay in replays:
        kind, width, count = replay.task.observation, replay.task.action.width, replay.candidates
        for _ in range(20):
            replay.append(
                lane=np.arange(4),
                observation=np.zeros((4, *kind.shape), kind.dtype),
                action=np.zeros((4, width), np.float32),
                policy=np.zeros((4, count), np.float32),
                candidates=np.zeros((4, count, width), np.float32),
                value=np.zeros(4, np.float32),
                reward=np.zeros(4, np.float32),
                ending=np.zeros(4, np.uint8),
            )
    learn, rng = config.learn, np.random.default_rng(0)
    batch = Mixture(replays).sample(
        np.arange(2), learn.rows, learn.unroll, learn.n_step, 0.0, learn.updates_per_call, rng
    )
    sent = {
        name: part.nbytes for name, part in vars(batch).items() if name not in ("task", "value")
    }
    assert sizes.bytes["batches of one call"] == sum(sent.values())


def test_a_model_too_large_for_any_machine_can_be_checked():
    flags = {"model.embed": "65536", "model.layers": "2", "model.expert_width": "10_000_000"}
    sizes = check(configure.resolve(tasks=["toy/target"], flags=flags))
    assert sum(sizes.parameters.values()) > 10**13


def test_the_verb_prints_both_tables(capsys):
    assert main(["check", "--tasks", "toy/target", "--model.embed", "16"]) == 0
    shown = capsys.readouterr().out
    assert "backbone" in shown
    assert "replay when full" in shown


@pytest.mark.slow
def test_an_update_of_every_kind_of_task_can_be_timed(capsys):
    tasks = ["--tasks", "toy/target", "toy/catch", "toy/corridor"]
    flags = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
    fast = ["--learn.updates_per_call", "1", "--learn.rows", "2", "--text.encoder", "scratch"]
    stages = ["--dps", "--dps.stages", "2", "--dps.rank", "2"]
    assert main(["check", *tasks, *flags, *fast, *stages, "--time"]) == 0
    *_, first, second, _ = capsys.readouterr().out.splitlines()
    for line in (first, second):
        assert float(line.split("│")[-2]) > 0
