import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from scalezero.agent.policies import IMPOSSIBLE, PolicyShape, policy, squash_action
from scalezero.agent.records import Listing

SHAPE = PolicyShape(
    choices=4, dimensions=2, candidates=5, sampled=3, key=0, sigma_min=0.1, sigma_max=1.0
)
TABLE = small.table().look_up(jnp.arange(4))
THREE, PLANE, LINE, SEEN = range(4)
# Which entries of a head's output each task uses: logits, or means and then deviations.
USED = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]], bool)
ROOM = np.array([3, 3, 3, 4])  # candidates each task has


def unlisted(output):
    """No slot has text."""
    return Listing(jnp.zeros((0, output.shape[1], 0), bool), None, None)


@pytest.fixture(scope="module")
def output():
    return jax.random.normal(jax.random.key(0), (4, 2, SHAPE.outputs))


@pytest.fixture(scope="module")
def candidates():
    """What `propose` would give, for tasks in the order of the table."""
    rng = np.random.default_rng(0)
    given = rng.normal(size=(4, 2, SHAPE.candidates, SHAPE.dimensions))
    return jnp.asarray(given, jnp.float32)


@eqx.filter_jit
def read(output, candidates, key, explore=1.0):
    """All that a policy says, and how it learns from its own candidates."""

    def said(output):
        made = policy(output, TABLE, SHAPE, unlisted(output))
        log_prob, entropy = made.log_prob(candidates), made.entropy()
        return jnp.sum(jnp.where(real(), jnp.sin(log_prob), 0)) + jnp.sum(entropy), (
            jnp.where(real(), log_prob, 0),
            entropy,
            made.propose(jnp.asarray(explore), key=key),
        )

    gradient, values = jax.grad(said, has_aux=True)(output)
    return gradient, values


def real():
    """Which candidates there are."""
    return np.broadcast_to(np.arange(SHAPE.candidates) < ROOM[:, None, None], (4, 2, 5))


def test_garbage_in_padded_outputs_changes_neither_values_nor_gradients(output, candidates, keys):
    key = next(keys)
    clean = read(output, candidates, key)
    dirty = read(jnp.where(USED[:, None], output, 1e4), candidates, key)
    jax.tree.map(np.testing.assert_array_equal, dirty[1], clean[1])
    np.testing.assert_array_equal(dirty[0], clean[0])
    assert not np.any(np.asarray(clean[0])[~np.broadcast_to(USED[:, None], output.shape)])
    assert np.all(np.asarray(clean[0])[np.broadcast_to(USED[:, None], output.shape)])


def test_garbage_in_padded_candidates_changes_neither_values_nor_gradients(
    output, candidates, keys
):
    key = next(keys)
    clean = read(output, candidates, key)
    given = real()[..., None] & (np.arange(2) < np.array([2, 2, 1, 2])[:, None, None, None])
    dirty = read(output, jnp.where(given, candidates, 1e4), key)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_candidates_of_a_discrete_task_are_its_choices(output, candidates, keys):
    _, (_, _, (actions, prior)) = read(output, candidates, next(keys))
    for task, count in ((THREE, 3), (SEEN, 4)):
        assert np.all(np.asarray(actions)[task, :, :count, 0] == np.arange(count))
        assert not np.any(np.asarray(actions)[task, ..., 1:])
        np.testing.assert_allclose(prior[task, :, :count], output[task, :, :count], rtol=1e-6)
        assert np.all(np.asarray(prior)[task, :, count:] == IMPOSSIBLE)


def test_candidates_of_a_continuous_task_are_as_many_as_are_sampled_and_equally_likely(
    output, candidates, keys
):
    _, (_, _, (actions, prior)) = read(output, candidates, next(keys))
    for task in (PLANE, LINE):
        assert np.all(np.asarray(prior)[task] == [0, 0, 0, IMPOSSIBLE, IMPOSSIBLE])
    assert np.all(np.asarray(actions)[PLANE])
    assert np.all(np.asarray(actions)[LINE, ..., 0])
    assert not np.any(np.asarray(actions)[LINE, ..., 1])


def test_without_exploring_the_first_candidate_is_the_mean(output, candidates, keys):
    made = policy(output, TABLE, SHAPE, unlisted(output))
    for key in (next(keys), next(keys)):
        _, (_, _, (still, _)) = read(output, candidates, key, 0.0)
        _, (_, _, (moving, _)) = read(output, candidates, key, 1.0)
        for task in (PLANE, LINE):
            np.testing.assert_array_equal(still[task, :, 0], made.mean[task])
            np.testing.assert_allclose(still[task, :, 1:], moving[task, :, 1:], atol=1e-6)
            assert not np.allclose(moving[task, :, 0, 0], made.mean[task, :, 0])


def test_samples_have_the_mean_and_the_deviation_of_the_policy(keys):
    wide = PolicyShape(
        choices=4, dimensions=2, candidates=4000, sampled=4000, key=0, sigma_min=0.1, sigma_max=1.0
    )
    output = jax.random.normal(next(keys), (4, 1, wide.outputs))
    made = policy(output, TABLE, wide, unlisted(output))
    actions, _ = made.propose(jnp.ones(()), key=next(keys))
    np.testing.assert_allclose(actions[PLANE, 0].mean(axis=0), made.mean[PLANE, 0], atol=0.06)
    np.testing.assert_allclose(actions[PLANE, 0].std(axis=0), made.sigma[PLANE, 0], rtol=0.05)


def test_rows_that_draw_alike_have_the_same_noise_in_another_order(output, keys):
    made = policy(output, TABLE, SHAPE, unlisted(output))
    alike, _ = made.propose(jnp.ones(()), alike=True, key=next(keys))
    noise = (alike - made.mean[..., None, :]) / made.sigma[..., None, :]
    one, next_one = np.asarray(noise[PLANE, 0]), np.asarray(noise[PLANE, 1])
    np.testing.assert_allclose(np.roll(one, -1, axis=0), next_one, atol=1e-5)
    assert np.std(one) > 0.3


def test_log_prob_of_a_choice_is_its_log_softmax(output, candidates, keys):
    _, (log_prob, entropy, _) = read(output, candidates, next(keys))
    for task, count in ((THREE, 3), (SEEN, 4)):
        for row in range(2):
            weight = np.exp(np.asarray(output, np.float64)[task, row, :count])
            share = weight / weight.sum()
            np.testing.assert_allclose(log_prob[task, row, :count], np.log(share), rtol=1e-5)
            np.testing.assert_allclose(
                entropy[task, row], -np.sum(share * np.log(share)), rtol=1e-5
            )


def test_log_prob_of_a_sample_is_the_gaussians_up_to_a_constant(output, candidates, keys):
    made = policy(output, TABLE, SHAPE, unlisted(output))
    _, (log_prob, entropy, _) = read(output, candidates, next(keys))
    mean, sigma = np.asarray(made.mean, np.float64), np.asarray(made.sigma, np.float64)
    for task, size in ((PLANE, 2), (LINE, 1)):
        for row in range(2):
            m, s = mean[task, row, :size], sigma[task, row, :size]
            x = np.asarray(candidates, np.float64)[task, row, :3, :size]
            each = np.exp(-((x - m) ** 2) / (2 * s**2)) / np.sqrt(2 * np.pi * s**2)
            whole = np.log(each).sum(axis=1) + size * 0.5 * np.log(2 * np.pi)
            np.testing.assert_allclose(log_prob[task, row, :3], whole, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                entropy[task, row], np.sum(0.5 * np.log(2 * np.pi * np.e * s**2)), rtol=1e-5
            )


def test_means_and_deviations_stay_in_their_bounds(keys):
    output = 100 * jax.random.normal(next(keys), (4, 50, SHAPE.outputs))
    made = policy(output, TABLE, SHAPE, unlisted(output))
    assert np.abs(made.mean).max() <= 2
    assert made.sigma[PLANE].min() >= 0.1 - 1e-6
    assert made.sigma[PLANE].max() <= 1 + 1e-6


def test_environments_get_numbers_and_squashed_entries():
    action = jnp.full((4, 2, 2), 3.0)
    given = squash_action(action, TABLE.discrete)
    np.testing.assert_array_equal(given[THREE], action[THREE])
    np.testing.assert_allclose(given[PLANE], np.tanh(3.0), rtol=1e-6)
