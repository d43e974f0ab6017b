import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scalezero.agent import learner as module
from scalezero.agent.learner import compile_for, learner, update, update_many
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.stages import trainable

NUMBERS = jnp.arange(4)
SETTINGS = small.config(learn={"target_rate": 0.25, "weight_decay": 0.1}).learn
RULE = Optimiser(SETTINGS, 10)
one_update = eqx.filter_jit(
    lambda state, batch: update(state, batch, NUMBERS, small.LIBRARY, SETTINGS, RULE)
)


@pytest.fixture(scope="module")
def state():
    return learner(small.small_world(key=jax.random.key(0)), RULE)


@pytest.fixture(scope="module")
def batch(state):
    return small.batch(np.random.default_rng(1), state.world, (0, 1, 2, 3))


@pytest.fixture(scope="module")
def after(state, batch):
    return one_update(state, batch)


def arrays(state) -> dict[str, np.ndarray]:
    """Every array of a learner by its path."""
    flat = jax.tree_util.tree_leaves_with_path(eqx.filter(state, eqx.is_array))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def memory(tree) -> list[int]:
    """Where the arrays of a tree lie, but for single numbers."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.ndim]


def near(a, b, atol: float) -> None:
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=atol, rtol=1e-4, err_msg=name)


def test_every_parameter_moves(state, after):
    old, new = arrays(state.world), arrays(after[0].world)
    assert [name for name in old if np.array_equal(old[name], new[name])] == []
    assert all(np.all(np.isfinite(x)) for x in new.values())
    assert after[0].updates == 1


def test_the_target_moves_by_its_rate(state, after):
    old, new = arrays(state.target), arrays(after[0].target)
    online = arrays(after[0].world)
    for name in old:
        copied = ".scale." in name  # running statistics are not averaged again
        expected = old[name] + (1 if copied else 0.25) * (online[name] - old[name])
        np.testing.assert_allclose(new[name], expected, rtol=1e-6, atol=1e-7)


def test_metrics_have_one_finite_entry_for_each_task(after):
    for metric in after[1].values():
        assert metric.shape == (4,)
        assert np.all(np.isfinite(metric))


def test_only_matrices_decay(state):
    params = eqx.filter(state.world, trainable(state.world))
    with jax.numpy_dtype_promotion("standard"):
        steps, _ = RULE.update(jax.tree.map(jnp.zeros_like, params), state.moments, params)
    moved = {
        jax.tree_util.keystr(path).rpartition(".")[2]: bool(np.any(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(steps)
    }
    decays = {"weight", "choice_tokens", "places", "class_token"}
    assert {name for name, any_step in moved.items() if any_step} == decays


@pytest.mark.slow
def test_two_devices_give_the_update_of_one(state, batch, after):
    mesh = Mesh(np.array(jax.devices()[:2]), ("row",))
    by_row = NamedSharding(mesh, PartitionSpec(None, "row"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    place = lambda tree, where: jax.tree.map(
        lambda x: jax.device_put(x, where) if eqx.is_array(x) else x, tree
    )
    spread, metrics = one_update(place(state, everywhere), place(batch, by_row))
    assert len(spread.world.choice_tokens.sharding.device_set) == 2
    # Adam divides by the root of tiny second moments, so a step is known to 1 in 1000 only.
    near(spread.world, after[0].world, atol=1e-3 * SETTINGS.learning_rate)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], after[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_many_updates_in_one_call_are_the_updates_one_by_one(state, batch, after):
    """To rounding: the compiler fuses a loop's body in its own way."""
    other = small.batch(np.random.default_rng(2), state.world, (0, 1, 2, 3))
    slow, last = one_update(after[0], other)
    both = jax.tree.map(lambda *x: jnp.stack(x), batch, other)
    fresh = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, state)  # it is donated
    places = memory(fresh.target), memory(fresh.moments)
    fast, metrics = update_many(
        fresh, both, jnp.stack([NUMBERS, NUMBERS]), small.LIBRARY, SETTINGS, RULE
    )
    assert (memory(fast.target), memory(fast.moments)) == places  # nothing had to be copied
    near(fresh.world, state.world, atol=0)  # an actor may still plan with it
    near(fast.world, slow.world, atol=1e-2 * SETTINGS.learning_rate)
    np.testing.assert_array_equal(fast.updates, 2)
    assert jnp.all(metrics.pop("sound") == 2)
    for name in metrics:
        mean = (after[1][name] + last[name]) / 2
        np.testing.assert_allclose(metrics[name], mean, rtol=1e-3, atol=1e-4, err_msg=name)


def rates(updates: int, **learn) -> list[float]:
    """The learning rate of each of some updates of a run that lasts 20."""
    rule = Optimiser(small.config(learn=learn | {"weight_decay": 0.0}).learn, 20)
    params = {"weight": jnp.zeros(1)}
    state, steps = rule.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(updates):
            step, state = rule.update({"weight": jnp.ones(1)}, state, params)
            steps.append(-float(step["weight"][0]))
    return steps


def test_the_learning_rate_rises_and_falls_as_asked():
    steps = rates(26, schedule="cosine", warmup=4, learning_rate=0.5)
    assert steps[0] == 0
    np.testing.assert_allclose(steps[:5], [0, 0.125, 0.25, 0.375, 0.5], atol=1e-5)
    assert np.all(np.diff(steps[4:]) <= 1e-6)
    np.testing.assert_allclose(steps[-1], 0, atol=1e-5)


def test_a_late_schedule_holds_the_rate_and_then_lets_it_fall():
    steps = rates(22, schedule="late", learning_rate=0.5)
    np.testing.assert_allclose(steps[:13], 0.5, atol=1e-5)
    np.testing.assert_allclose(steps[12:20], np.linspace(0.5, 0.5 / 8, 8), atol=1e-5)
    np.testing.assert_allclose(steps[20:], 0, atol=1e-5)


@pytest.mark.slow
def test_what_was_compiled_before_is_not_compiled_again(state, batch, monkeypatch):
    traces = []
    monkeypatch.setattr(module, "update", lambda *given: traces.append(0) or update(*given))
    batches = jax.tree.map(lambda x: jnp.stack([x] * 5), batch)  # as many as nowhere else
    fresh = learner(state.world, RULE)
    given = batches, jnp.stack([NUMBERS] * 5), small.LIBRARY, SETTINGS, RULE
    compile_for(fresh, *given)
    assert len(traces) == 1
    after, _ = update_many(fresh, *given)  # `fresh` was left alone
    assert len(traces) == 1
    assert after.updates == 5
