import equinox as eqx
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero.agent.records import Batch, Observation
from scalezero.agent.targets import ends, n_step_value, targets
from scalezero.envs.spec import GOES_ON, TERMINATED, TRUNCATED

TIME, N = 4, 3
ROWS = TIME + N + 1


def slow_value(reward, known, terminated, value, gamma, n, t) -> float:
    """The definition, one step at a time."""
    total, factor = 0.0, 1.0
    for _ in range(n):
        if t + 1 >= len(known) or not known[t + 1]:
            break
        total += factor * reward[t]
        factor *= gamma
        t += 1
    return total + (0.0 if terminated[t] else factor * value[t])


@st.composite
def windows(draw):
    """A window that begins `here` rows before its episode ends, in one of three ways."""
    last = draw(st.integers(-1, ROWS))  # -1: nothing is known; ROWS: it outlasts the window
    ends = draw(st.sampled_from([GOES_ON, TERMINATED, TRUNCATED]))  # GOES_ON: the tail is unknown
    numbers = st.lists(st.floats(-5, 5, width=32), min_size=ROWS, max_size=ROWS)
    ending = np.zeros(ROWS, np.uint8)
    if 0 <= last < ROWS:
        ending[last] = ends
    reward, value = np.array(draw(numbers)), np.array(draw(numbers))
    # What lies behind the end belongs to another episode, or is nothing: any codes at all.
    behind = np.arange(ROWS) > last
    ending[behind] = draw(st.integers(0, 2))
    return reward[:-1], np.arange(ROWS) <= last, ending, value


def one_row(x, dtype):
    return jnp.asarray(x, dtype)[None, None]


@eqx.filter_jit
def fast_value(reward, known, terminated, value, discount):
    return n_step_value(reward, known, terminated, at_ends(value, known, TIME), discount)


def at_ends(value, known, time):
    """Of the values of all rows, those that targets read."""
    return jnp.take_along_axis(value, ends(known, time), axis=2)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(windows(), st.sampled_from([0.5, 0.99]))
def test_values_are_what_a_loop_over_steps_gives(window, gamma):
    reward, known, ending, value = window
    terminated = ending == TERMINATED
    fast = fast_value(
        one_row(reward, jnp.float32),
        one_row(known, bool),
        one_row(terminated, bool),
        one_row(value, jnp.float32),
        jnp.array([gamma], jnp.float32),
    )
    for t in range(TIME):
        if known[t]:
            slow = slow_value(reward, known, terminated, value, gamma, N, t)
            np.testing.assert_allclose(fast[0, 0, t], slow, atol=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(windows())
def test_rows_whose_values_are_read_stand_close_together(window):
    _, known, _, _ = window
    end = np.asarray(ends(one_row(known, bool), TIME))[0, 0]
    assert np.all(np.diff(end) >= 0) and end[-1] - end[0] < TIME
    assert all(known[row] for row, own in zip(end, known, strict=False) if own)


def batch(ending, known, reward, time: int) -> Batch:
    """One window; only what targets read is filled in."""
    rows = len(known)
    nothing = lambda *shape: jnp.zeros((1, 1, *shape))
    return Batch(
        observation=Observation(
            nothing(rows, 1),
            jnp.zeros((0, 1, rows, 1, 1, 1), jnp.uint8),
            jnp.zeros((0, 1, rows, 1), jnp.int32),
        ),
        action=nothing(rows - 1, 1),
        candidates=nothing(time, 2, 1),
        policy=nothing(time, 2),
        valid=jnp.ones((1, 1, time, 2), bool),
        reward=one_row(reward, jnp.float32),
        ending=one_row(ending, jnp.uint8),
        known=one_row(known, bool),
    )


def by_hand(ending, known):
    """Targets of 3 decisions, two steps ahead: rewards 1 2 4 8 16, values 10 20 … 60, γ = ½."""
    window = batch(ending, known, [1, 2, 4, 8, 16], time=3)
    made = targets(
        window,
        latent=jnp.arange(1.0, 6.0)[None, None, :, None],
        value=at_ends(jnp.arange(10.0, 70.0, 10.0)[None, None], window.known, time=3),
        discount=jnp.array([0.5]),
        reward_scale=jnp.array([1.0]),
    )
    return {name: np.asarray(x)[0, 0].tolist() for name, x in vars(made).items()}


def test_a_window_inside_an_episode():
    made = by_hand([0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1])
    assert made["reward"] == [1, 2, 4]
    assert made["value"] == [1 + 1 + 30 / 4, 2 + 2 + 40 / 4, 4 + 4 + 50 / 4]
    assert made["latent"] == [[2], [3], [4]]
    for known in ("decided", "followed", "rewarded", "valued"):
        assert made[known] == [True] * 3


def test_nothing_follows_a_termination():
    made = by_hand([0, 0, TERMINATED, 2, 2, 2], [1, 1, 1, 0, 0, 0])
    assert made["reward"] == [1, 2, 0]
    assert made["value"] == [1 + 1, 2, 0]
    assert made["decided"] == made["followed"] == [True, True, False]
    assert made["rewarded"] == made["valued"] == [True] * 3


def test_the_value_of_the_last_row_stands_for_what_a_truncation_cut():
    made = by_hand([0, 0, TRUNCATED, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert made["value"][:2] == [1 + 1 + 30 / 4, 2 + 30 / 2]
    for known in ("decided", "followed", "rewarded", "valued"):
        assert made[known] == [True, True, False]


def test_the_value_of_the_last_row_stands_for_what_is_not_known_yet():
    made = by_hand([0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0])
    assert made["value"][:2] == [1 + 1 + 30 / 4, 2 + 30 / 2]
    assert made["decided"] == made["rewarded"] == [True] * 3
    assert made["followed"] == made["valued"] == [True, True, False]


def test_rewards_are_scaled_and_bootstrapped_values_are_not():
    given = batch([0] * 6, [1] * 6, [1, 2, 4, 8, 16], time=3)
    make = lambda scale: targets(
        given,
        latent=jnp.zeros((1, 1, 5, 1)),
        value=jnp.full((1, 1, 3), 8.0),
        discount=jnp.array([0.5]),
        reward_scale=jnp.array([scale]),
    )
    np.testing.assert_array_equal(make(0.5).reward, 0.5 * make(1.0).reward)
    np.testing.assert_allclose(make(0.5).value[0, 0, 0], 0.5 * (1 + 1) + 8 / 4)
