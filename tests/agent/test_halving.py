import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from reference_tree import halving

from scalezero.agent.halving import cheapest, race, rounds, stretches


def test_rows_with_fewer_actions_race_by_their_own_rules():
    """Rows of one search, of which each could have been searched alone."""
    exists = jnp.asarray(np.arange(6) < np.array([0, 1, 2, 5, 6])[:, None])
    state, visits = race(exists, considered=5, simulations=9), np.zeros((5, 6), int)
    score = jnp.tile(jnp.array([0.3, 0.9, 0.1, 0.5, 0.7, 0.2]), (5, 1))
    while not np.all(state.over):
        entry, state = state.next_round(score, exists, jnp.asarray(visits, jnp.int32)).call(2)
        for row, lane in zip(*np.nonzero(entry.live), strict=True):
            visits[row, entry.choice[row, lane]] += 1
    assert [sorted(row) for row in visits.tolist()] == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 9],
        [0, 0, 0, 0, 4, 5],
        [0, 1, 1, 1, 3, 3],
        [0, 1, 1, 1, 3, 3],
    ]
    assert np.all(np.argmax(visits, axis=-1)[1:] == [0, 1, 1, 1])


def test_as_many_lanes_as_are_cheapest():
    assert rounds(8, 12) == [(0, 8), (1, 4)]
    assert rounds(2, 5) == [(0, 2), (1, 2), (2, 1)]
    assert cheapest({8}, 12, rows=16, overhead=1) == ((4, 3),)  # none is idle
    assert cheapest({8}, 12, rows=16, overhead=1000) == ((8, 2),)  # fewest passes
    assert cheapest({8}, 50, rows=16, overhead=64) == ((8, 2), (4, 4), (2, 9))  # both
    assert cheapest({8, 2}, 12, rows=16, overhead=0) == ((1, 12),)
    assert cheapest({8, 2}, 12, rows=16, overhead=1000) == ((2, 6),)
    assert cheapest({8, 1}, 12, rows=16, overhead=1000) == ((8, 2),)
    assert cheapest({1}, 12, rows=16, overhead=1000) == ((1, 12),)
    assert cheapest({0}, 12, rows=16, overhead=1000) == ((1, 12),)
    assert cheapest(set(), 12, rows=16, overhead=1000) == ((1, 12),)


@pytest.mark.parametrize("entrants", [{8}, {5}, {8, 5, 2}, {3, 1}, set(range(9))])
@pytest.mark.parametrize("simulations", [1, 12, 50])
@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 4), (2, 8), (3, 5), (8, 8)])
def test_stretches_are_what_the_slowest_race_needs(entrants, simulations, least, most):
    made = stretches(entrants, simulations, least, most)
    lanes = [width for width, passes in made for _ in range(passes)]
    assert lanes == sorted(lanes, reverse=True)
    assert least <= lanes[-1] <= lanes[0] <= most
    needed = 0
    for count in entrants - {0, 1}:
        left, passes = [tried for _, tried in rounds(count, simulations)], 0
        while left:
            left[0] -= lanes[passes]
            left = left if left[0] > 0 else left[1:]
            passes += 1
        needed = max(needed, passes)
    assert len(lanes) == needed


def test_halving_gives_every_considered_action_its_visits():
    assert halving(4, 8) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert halving(1, 3) == [0, 1, 2]
    assert halving(8, 12) == [0] * 8 + [1] * 4
    for considered in (1, 2, 3, 5, 8, 16):
        for simulations in (1, 4, 12, 50):
            theirs = mctx._src.seq_halving.get_sequence_of_considered_visits(
                considered, simulations
            )
            assert tuple(halving(considered, simulations)) == theirs
            ours = [had for had, tried in rounds(considered, simulations) for _ in range(tried)]
            assert tuple(ours) == theirs
