import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from scalezero.agent.losses import loss, per_task
from scalezero.agent.targets import ends, targets
from scalezero.envs.spec import TERMINATED

NUMBERS = (0, 1, 2, 3)
LEARN = small.config(learn={"loss": {"balance": 0.01, "router_z": 0.01}}).learn
TRACES = []


@pytest.fixture(scope="module")
def worlds():
    world = small.small_world(key=jax.random.key(0))
    return world, jax.tree.map(lambda x: 0.9 * x, world)


def batch_of(worlds, numbers=NUMBERS, seed=1):
    return small.batch(np.random.default_rng(seed), worlds[0], numbers)


@eqx.filter_jit
def value_and_gradient(worlds, batch, task):
    TRACES.append(task)
    params, rest = eqx.partition(worlds[0], eqx.is_inexact_array)

    def objective(params):
        world = eqx.combine(params, rest)
        return loss(world, worlds[1], batch, task, small.LIBRARY, LEARN)

    (scalar, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    return scalar, metrics, gradient


def over_at(batch, last: int):
    """`batch` with every episode terminated at row `last`, and nothing known behind it."""
    rows = np.arange(batch.known.shape[2])
    return eqx.tree_at(
        lambda b: (b.ending, b.known),
        batch,
        (
            jnp.broadcast_to(jnp.where(rows == last, TERMINATED, 0), batch.ending.shape).astype(
                jnp.uint8
            ),
            jnp.broadcast_to(jnp.asarray(rows <= last), batch.known.shape),
        ),
    )


def spoiled(batch, last: int, number: float):
    """Garbage in all that no step up to the end `last` may read."""
    fill = lambda x, first: x.at[:, :, first:].set(jnp.asarray(number).astype(x.dtype))
    seen = batch.observation
    return eqx.tree_at(
        lambda b: (
            b.observation.vector,
            b.observation.image,
            b.action,
            b.candidates,
            b.policy,
            b.reward,
            b.ending,
        ),
        batch,
        (
            fill(seen.vector, last + 1),
            fill(seen.image, last + 1),
            fill(batch.action, last + 1),
            fill(batch.candidates, last),
            fill(batch.policy, last),
            fill(batch.reward, last),
            batch.ending.at[:, :, last + 1 :].set(TERMINATED),
        ),
    )


def near(a, b, atol=1e-5):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=atol, rtol=1e-4), a, b)


def test_masked_steps_cannot_matter_to_a_mean():
    given = jnp.arange(12.0).reshape(3, 2, 2)
    mask = jnp.ones((3, 2, 2), bool).at[0, 0, 1].set(False)
    task = jnp.array([1, 1, 0])
    a = per_task(given, mask, task, 3)
    b = per_task(given.at[0, 0, 1].set(jnp.nan), mask, task, 3)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, [9.5, 27 / 7, 0.0], rtol=1e-6)


def test_what_follows_an_episodes_end_matters_neither_to_losses_nor_to_gradients(worlds):
    batch = over_at(batch_of(worlds), 1)
    clean = value_and_gradient(worlds, batch, jnp.array(NUMBERS))
    dirty = value_and_gradient(worlds, spoiled(batch, 1, 77.0), jnp.array(NUMBERS))
    near(dirty, clean)


def test_targets_that_do_not_exist_may_even_be_no_number(worlds):
    batch = over_at(batch_of(worlds), 1)
    holes = eqx.tree_at(
        lambda b: (b.policy, b.reward),
        batch,
        (batch.policy.at[:, :, 1:].set(jnp.nan), batch.reward.at[:, :, 1:].set(jnp.nan)),
    )
    clean = value_and_gradient(worlds, batch, jnp.array(NUMBERS))
    near(value_and_gradient(worlds, holes, jnp.array(NUMBERS)), clean)


def test_values_are_those_of_whole_windows_where_rewards_end(worlds):
    batch, task = batch_of(worlds), jnp.array(NUMBERS)
    slots, rows, moments = batch.known.shape
    last = np.arange(slots * rows).reshape(slots, rows, 1) % moments  # what follows was never seen
    known = jnp.asarray(np.arange(moments)[None, None] <= last)
    batch = eqx.tree_at(lambda b: b.known, batch, known)
    bound = worlds[1].bind(task, len(batch.observation.vector), small.LIBRARY)
    latent = bound.encode(batch.observation)
    action = jnp.pad(batch.action, ((0, 0), (0, 0), (0, 1), (0, 0)))
    token = bound.action_token(action, bound.listing(batch.observation.text))
    value = bound.value(eqx.filter_jit(bound.unroll)(latent, token).at_latent)
    value = jnp.take_along_axis(value, ends(known, batch.policy.shape[2]), axis=2)
    table = bound.table
    goal = targets(batch, latent[:, :, :-1], value, table.discount, table.reward_scale)
    _, metrics, _ = value_and_gradient(worlds, batch, task)
    near(metrics["target/value"], per_task(goal.value, goal.valued, task, len(NUMBERS)))
    assert np.any(np.abs(value) > 1e-4)


def test_changing_the_mix_of_tasks_does_not_recompile(worlds):
    value_and_gradient(worlds, batch_of(worlds), jnp.array(NUMBERS))
    before = len(TRACES)
    for numbers in ((2, 1, 0, 3), (1, 1, 1, 3)):
        value_and_gradient(worlds, batch_of(worlds, numbers), jnp.array(numbers))
    assert len(TRACES) == before


def test_the_order_of_slots_does_not_matter(worlds):
    batch = batch_of(worlds)
    order = np.array([2, 0, 1, 3])
    moved = jax.tree.map(lambda x: x[order] if len(x) == 4 else x, batch)
    moved = eqx.tree_at(lambda b: b.observation.vector, moved, batch.observation.vector[order[:3]])
    plain = value_and_gradient(worlds, batch, jnp.array(NUMBERS))
    other = value_and_gradient(worlds, moved, jnp.array(NUMBERS)[order])
    near(other, plain)


def test_slots_of_the_same_task_average(worlds):
    a, b = batch_of(worlds), batch_of(worlds, seed=2)
    first = lambda x, y: y.at[1].set(x[1]).at[0].set(y[1]) if len(y) > 1 else y
    both = jax.tree.map(first, a, b)  # slot 0 is b's slot 1, slot 1 is a's
    _, one, _ = value_and_gradient(worlds, a, jnp.array(NUMBERS))
    _, two, _ = value_and_gradient(worlds, b, jnp.array(NUMBERS))
    _, mean, _ = value_and_gradient(worlds, both, jnp.array([1, 1, 2, 3]))
    for name in one:
        if name.startswith("loss/"):
            np.testing.assert_allclose(mean[name][1], (one[name][1] + two[name][1]) / 2, rtol=1e-4)
            assert mean[name][0] == 0  # task 0 is not in the batch


def test_the_loss_is_the_mean_over_the_tasks_in_the_batch(worlds):
    plain = small.config(learn={"loss": {"latent": 3.0, "entropy": 0.1}}).learn
    batch = batch_of(worlds, (1, 1, 2, 3))
    scalar, parts = eqx.filter_jit(lambda *args: loss(*args, plain))(
        *worlds, batch, jnp.array([1, 1, 2, 3]), small.LIBRARY
    )
    weighted = (
        3.0 * parts["loss/latent"]
        + parts["loss/reward"]
        + 0.5 * parts["loss/value"]
        + parts["loss/policy"]
        - 0.1 * parts["loss/entropy"]
    )
    np.testing.assert_allclose(parts["loss/total"], weighted, rtol=1e-5)
    np.testing.assert_allclose(scalar, np.sum(weighted) / 3, rtol=1e-5)


def test_no_gradient_reaches_the_target(worlds):
    batch, task = batch_of(worlds), jnp.array(NUMBERS)
    params, rest = eqx.partition(worlds[1], eqx.is_inexact_array)

    def lost(params):
        target = eqx.combine(params, rest)
        return loss(worlds[0], target, batch, task, small.LIBRARY, LEARN)[0]

    gradient = jax.jit(jax.grad(lost))(params)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_a_task_that_is_not_in_the_batch_gives_its_own_layers_no_gradient(worlds):
    numbers = (0, 0, 2, 3)
    _, _, gradient = value_and_gradient(worlds, batch_of(worlds, numbers), jnp.array(numbers))
    for head in (gradient.policy, gradient.value, gradient.reward, gradient.dynamics):
        for leaf in jax.tree.leaves(head):
            assert not np.any(leaf[1])
            assert np.any(leaf[0])


def test_shares_of_the_experts_sum_to_one(worlds):
    _, metrics, _ = value_and_gradient(worlds, batch_of(worlds), jnp.array(NUMBERS))
    for layer in range(2):
        shares = [metrics[f"experts/layer{layer}/{index}"] for index in range(3)]
        np.testing.assert_allclose(np.sum(shares, axis=0), 1, rtol=1e-5)
