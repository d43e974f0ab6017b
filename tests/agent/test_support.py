import equinox as eqx
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero.agent.support import cross_entropy, scalar, squash, two_hot, unsquash

SUPPORT = jnp.linspace(-10.0, 10.0, 21)
REACH = float(unsquash(jnp.array(10.0)))
few = settings(max_examples=40, deadline=None, derandomize=True, database=None)
encode = eqx.filter_jit(lambda x: two_hot(x, SUPPORT))


def numbers(limit: float):
    """Eight numbers as one array, so that nothing recompiles."""
    one = st.floats(-limit, limit, width=32)
    return st.lists(one, min_size=8, max_size=8).map(lambda x: jnp.array(x, jnp.float32))


@few
@given(numbers(1e5))
def test_squashing_can_be_undone(x):
    np.testing.assert_allclose(unsquash(squash(x)), x, rtol=1e-5, atol=1e-6)


@few
@given(numbers(1e5))
def test_squashing_keeps_signs_and_order(x):
    y = np.asarray(squash(x))
    assert np.all((np.sign(y) == np.sign(x)) | (np.abs(x) < 1e-30))  # too small for float32
    order = np.argsort(x, stable=True)
    assert np.all(np.diff(y[order]) >= 0)
    assert np.all(np.abs(y) <= np.abs(x) * 1.001 + 1e-6)


@few
@given(numbers(1e3))
def test_two_hot_is_a_distribution_on_neighbours_whose_mean_is_the_clipped_value(x):
    hot = np.asarray(encode(x))
    assert hot.min() >= 0
    np.testing.assert_allclose(hot.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(hot @ np.asarray(SUPPORT), np.clip(x, -10, 10), atol=1e-4)
    for row in hot:
        places = np.flatnonzero(row)
        assert len(places) <= 2
        assert places[-1] - places[0] <= 1


@few
@given(numbers(REACH))
def test_a_perfect_prediction_stands_for_its_target(x):
    logits = jnp.log(encode(squash(x)) + 1e-30)
    np.testing.assert_allclose(scalar(logits, SUPPORT), x, rtol=1e-4, atol=1e-4)


def test_bin_centres_are_one_hot():
    np.testing.assert_allclose(encode(SUPPORT), np.eye(21), atol=1e-5)


def test_even_logits_stand_for_zero():
    np.testing.assert_allclose(scalar(jnp.zeros((2, 3, 21)), SUPPORT), 0, atol=1e-6)


def test_cross_entropy_is_least_at_the_target_and_is_its_entropy_there():
    target = jnp.array([0.25, 0.75])
    at_target = cross_entropy(jnp.log(target), target)
    np.testing.assert_allclose(at_target, -np.sum(target * np.log(target)), rtol=1e-6)
    assert cross_entropy(jnp.array([0.0, 0.0]), target) > at_target
