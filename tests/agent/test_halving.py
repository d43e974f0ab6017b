import jax.numpy as jnp
import mctx
import numpy as np
from reference_tree import halving

from scalezero.agent.halving import lanes, race, rounds


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
    assert lanes({8}, 12, rows=16, overhead=1) == (4, 3)  # none is idle
    assert lanes({8}, 12, rows=16, overhead=1000) == (8, 2)  # fewest passes
    assert lanes({8, 2}, 12, rows=16, overhead=0) == (1, 12)
    assert lanes({8, 2}, 12, rows=16, overhead=1000) == (2, 6)
    assert lanes({8, 1}, 12, rows=16, overhead=1000) == (8, 2)
    assert lanes({1}, 12, rows=16, overhead=1000) == (1, 12)
    assert lanes(set(), 12, rows=16, overhead=1000) == (1, 12)


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
