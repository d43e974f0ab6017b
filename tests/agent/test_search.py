import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
import small
from reference_tree import Model, gumbel_search, puct_search
from tabular import Tabular, at

from scalezero.agent import search as search_module
from scalezero.agent.halving import stretches
from scalezero.agent.policies import IMPOSSIBLE
from scalezero.agent.records import Listing
from scalezero.agent.rules import completed_values, with_noise
from scalezero.agent.search import plan
from scalezero.agent.tree import Actions
from scalezero.config import SearchSettings

STATES, ROWS = 40, 6
SCALE, OFFSET = 0.1, 50.0
NOTHING_LISTED = Listing(jnp.zeros((0, 1, 0), bool), None, None)


def random_model(actions: int, *, seed: int = 0) -> Model:
    """Any model at all: each step leads to any state."""
    rng = np.random.default_rng(seed)
    exact = lambda x: x.astype(np.float32).astype(np.float64)
    return Model(
        logits=exact(rng.normal(size=(STATES, actions))),
        value=exact(rng.normal(size=STATES)),
        reward=exact(rng.normal(size=(STATES, actions))),
        successor=rng.integers(0, STATES, (STATES, actions)),
        discount=0.9375,
    )


def tree_model(actions: int, depth: int, *, seed: int = 0) -> tuple[Model, np.ndarray]:
    """Worlds that end after `depth` decisions, and whose values the model knows badly.

    Also the return of the best play after each first action of each of `ROWS` worlds.
    """
    rng = np.random.default_rng(seed)
    layers = [ROWS * actions**level for level in range(depth)]
    states = sum(layers) + 1  # the last one is the end
    reward, successor = np.zeros((states, actions)), np.full((states, actions), states - 1)
    begin = np.cumsum([0, *layers])
    for level in range(depth):
        for index in range(layers[level]):
            reward[begin[level] + index] = rng.random(actions)
            if level + 1 < depth:
                successor[begin[level] + index] = (
                    begin[level + 1] + index * actions + range(actions)
                )
    discount, worth = 0.9375, np.zeros(states)
    for state in reversed(range(states - 1)):
        worth[state] = np.max(reward[state] + discount * worth[successor[state]])
    guess = np.where(np.arange(states) < states - 1, worth + 0.3 * rng.normal(size=states), 0)
    model = Model(np.zeros((states, actions)), guess, reward, successor, discount)
    return model, (reward + discount * worth[successor])[:ROWS]


@functools.cache
def searcher(kind: str, simulations: int, considered: int, scale: float):
    """A compiled search."""
    settings = SearchSettings(
        kind=kind,
        simulations=simulations,
        considered=considered,
        value_scale=scale,
        visit_offset=OFFSET,
    )
    return eqx.filter_jit(
        lambda world, history, explore, key: plan(
            world, history, NOTHING_LISTED, settings, explore, key=key
        )
    )


def search(
    model,
    states,
    *,
    kind,
    simulations,
    considered=4,
    explore=0.0,
    choices=None,
    key=None,
    scale=SCALE,
):
    """The plan for rows that stand in `states`."""
    world = Tabular(model, choices or model.logits.shape[1])
    key = jax.random.key(0) if key is None else key
    run = searcher(kind, simulations, considered, scale)
    return run(world, at(states), jnp.array(explore, jnp.float32), key)


def gumbel_noise(key, rows: int, actions: int) -> np.ndarray:
    """The noise that `plan` draws."""
    drawn = jax.random.split(key, 4)[1]
    return np.asarray(jax.random.gumbel(drawn, (rows, actions)), np.float64)


@pytest.mark.parametrize("explore", [0.0, 1.0])
@pytest.mark.parametrize(("actions", "considered", "simulations"), [(5, 4, 20), (3, 8, 9)])
def test_gumbel_search_is_what_the_paper_says(actions, considered, simulations, explore):
    model, key = random_model(actions), jax.random.key(7)
    made = search(
        model,
        range(ROWS),
        kind="gumbel",
        simulations=simulations,
        considered=considered,
        explore=explore,
        key=key,
    )
    noise = explore * gumbel_noise(key, ROWS, actions)
    for row in range(ROWS):
        slow = gumbel_search(
            model,
            row,
            noise[row],
            simulations=simulations,
            considered=considered,
            scale=SCALE,
            offset=OFFSET,
        )
        assert made.action[0, row, 0] == slow.action
        np.testing.assert_allclose(made.policy[0, row], slow.policy, atol=1e-4)
        np.testing.assert_allclose(made.value[0, row], slow.value, atol=1e-4)


@pytest.mark.parametrize(("actions", "simulations"), [(5, 30), (2, 9)])
def test_puct_search_is_what_the_paper_says(actions, simulations):
    model = random_model(actions)
    made = search(model, range(ROWS), kind="puct", simulations=simulations)
    for row in range(ROWS):
        slow = puct_search(model, row, simulations=simulations)
        np.testing.assert_allclose(made.policy[0, row] * simulations, slow.visits, atol=1e-4)
        np.testing.assert_allclose(made.value[0, row], slow.value, atol=1e-4)
        if np.sum(slow.visits == slow.visits.max()) == 1:
            assert made.action[0, row, 0] == slow.action


@pytest.mark.parametrize(("kind", "depth", "simulations"), [("gumbel", 3, 200), ("puct", 2, 400)])
def test_enough_simulations_find_the_best_play(kind, depth, simulations):
    """The weight of values is lower here than in a run: it saturates where priors say nothing."""
    rows, blind = np.arange(ROWS), 0.0
    for seed in range(3):
        model, best = tree_model(3, depth, seed=seed)
        made = search(
            model, range(ROWS), kind=kind, simulations=simulations, considered=3, scale=0.02
        )
        taken = np.asarray(made.action[0, :, 0], int)
        lost = best.max(axis=1) - best[rows, taken]
        assert lost.max() <= 0
        greedy = np.argmax((model.reward + model.discount * model.value[model.successor])[:ROWS], 1)
        blind = max(blind, np.max(best.max(axis=1) - best[rows, greedy]))
    assert blind > 0.05  # one step ahead is not enough in these worlds


@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_padded_candidates_change_nothing(kind):
    model = random_model(3)
    plain = search(model, range(ROWS), kind=kind, simulations=20)
    padded = search(model, range(ROWS), kind=kind, simulations=20, choices=7)
    np.testing.assert_array_equal(padded.action, plain.action)
    np.testing.assert_allclose(padded.policy[..., :3], plain.policy, atol=1e-6)
    np.testing.assert_allclose(padded.value, plain.value, atol=1e-6)
    assert not np.any(padded.policy[..., 3:])


@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_a_padded_candidate_is_never_taken_while_exploring(kind):
    model = random_model(3)
    for seed in range(5):
        key = jax.random.key(seed)
        made = search(
            model, range(ROWS), kind=kind, simulations=20, choices=7, explore=1.0, key=key
        )
        assert np.all(np.asarray(made.action) < 3)
        assert not np.any(made.policy[..., 3:])
        np.testing.assert_allclose(made.policy.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_the_same_key_gives_the_same_plan_and_another_explores(kind):
    model = random_model(5)
    again = lambda seed: search(
        model, range(ROWS), kind=kind, simulations=20, explore=1.0, key=jax.random.key(seed)
    )
    jax.tree.map(np.testing.assert_array_equal, again(1), again(1))
    plans = [np.asarray(again(seed).action) for seed in range(6)]
    assert any(not np.array_equal(plans[0], other) for other in plans[1:])


@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_without_exploring_a_discrete_task_has_one_plan_whatever_the_key(kind):
    model = random_model(5)
    again = lambda seed: search(
        model, range(ROWS), kind=kind, simulations=20, key=jax.random.key(seed)
    )
    for seed in range(1, 6):
        jax.tree.map(np.testing.assert_array_equal, again(seed), again(0))


@pytest.mark.parametrize(
    ("actions", "considered", "simulations"), [(7, 8, 50), (5, 3, 7), (2, 2, 9)]
)
def test_how_many_lanes_there_are_changes_no_plan(monkeypatch, actions, considered, simulations):
    """Together with the slow tree, which goes one by one: all at once is the same search."""
    model = random_model(actions)
    entrants, made = min(actions, considered), []
    for least, most in ((1, 1), (1, 2), (3, 3), (1, entrants), (2, entrants), (9, 9)):
        way = stretches({entrants}, simulations, least, most)
        monkeypatch.setattr(search_module, "itinerary", lambda *_, way=way: way)
        searcher.cache_clear()
        made.append(
            search(
                model,
                range(ROWS),
                kind="gumbel",
                simulations=simulations,
                considered=considered,
                explore=1.0,
            )
        )
    searcher.cache_clear()
    for other in made[1:]:
        np.testing.assert_array_equal(other.action, made[0].action)
        np.testing.assert_allclose(other.policy, made[0].policy, atol=1e-6)
        np.testing.assert_allclose(other.value, made[0].value, atol=1e-6)


def test_rows_of_all_kinds_of_tasks_plan_the_same_in_any_number_of_lanes(monkeypatch):
    world = small.small_world(key=jax.random.key(0))
    history = small.history(np.random.default_rng(3), world, (0, 1, 2, 3), 2)
    settings = SearchSettings(simulations=7, considered=3, candidates=3)
    listing = Listing(jnp.zeros((0, 2, 0), bool), None, None)

    def planned(most: int):
        way = stretches({3, 4}, 7, 1, most)
        monkeypatch.setattr(search_module, "itinerary", lambda *_: way)
        bound, still = world.bind(jnp.arange(4), 3, small.LIBRARY), jnp.zeros(())
        return plan(bound, history, listing, settings, still, key=jax.random.key(1))

    one, more = (eqx.filter_jit(planned)(width) for width in (1, 3))
    discrete = np.array([0, 3])
    np.testing.assert_array_equal(more.action[discrete], one.action[discrete])
    np.testing.assert_allclose(more.policy[discrete], one.policy[discrete], atol=1e-5)
    np.testing.assert_allclose(more.candidates, one.candidates, atol=1e-6)


def test_one_round_and_the_first_of_the_next_are_those_of_mctx():
    """After that mctx scores anew within a round."""
    model, actions = random_model(6), 6
    made = search(model, range(ROWS), kind="gumbel", simulations=7, considered=6)
    rows = jnp.arange(ROWS)
    logits, value = jnp.asarray(model.logits, jnp.float32), jnp.asarray(model.value, jnp.float32)
    reward, successor = jnp.asarray(model.reward, jnp.float32), jnp.asarray(model.successor)

    def recurrent(_, key, action, state):
        following = successor[state, action]
        step = mctx.RecurrentFnOutput(
            reward=reward[state, action],
            discount=jnp.full(ROWS, model.discount),
            prior_logits=logits[following],
            value=value[following],
        )
        return step, following

    root = mctx.RootFnOutput(prior_logits=logits[rows], value=value[rows], embedding=rows)
    transform = functools.partial(
        mctx.qtransform_completed_by_mix_value, value_scale=SCALE, maxvisit_init=int(OFFSET)
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = mctx.gumbel_muzero_policy(
            None,
            jax.random.key(0),
            root,
            recurrent,
            7,
            max_num_considered_actions=actions,
            qtransform=transform,
            gumbel_scale=0.0,
        )
    np.testing.assert_array_equal(made.action[0, :, 0], theirs.action)
    np.testing.assert_allclose(made.policy[0], theirs.action_weights, atol=1e-5)


def root(logits, visits, values) -> Actions:
    """A root whose actions came out like this."""
    exact = lambda x: jnp.asarray(x, jnp.float32)
    return Actions(exact(0.5), exact(logits), exact(values), jnp.asarray(visits, jnp.int32))


def read(node: Actions, floor: float = 0.0):
    """Its completed values."""
    return completed_values(node, SearchSettings(value_floor=floor))


@pytest.mark.parametrize("visits", [[0, 0, 0], [3, 0, 1], [2, 2, 2]])
def test_completed_values_are_those_of_mctx_where_nothing_is_padded(visits):
    node = root([0.1, -0.7, 1.0], visits, [1.0, -2.0, 0.25])
    nodes = lambda x: x[None]
    tree = mctx.Tree(
        node_visits=nodes(1 + node.visits.sum()),
        raw_values=nodes(node.guess),
        node_values=nodes(node.worth),
        parents=jnp.array([-1]),
        action_from_parent=jnp.array([-1]),
        children_index=jnp.zeros((1, 3), jnp.int32),
        children_prior_logits=nodes(node.prior),
        children_visits=nodes(node.visits),
        children_rewards=jnp.zeros((1, 3)),
        children_discounts=jnp.ones((1, 3)),
        children_values=nodes(node.value),
        embeddings=None,
        root_invalid_actions=jnp.zeros(3),
        extra_data=None,
    )
    with jax.numpy_dtype_promotion("standard"):
        theirs = mctx.qtransform_completed_by_mix_value(tree, 0, value_scale=0.1, maxvisit_init=50)
    np.testing.assert_allclose(read(node), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("visits", [[0, 0, 0], [3, 0, 1], [2, 2, 2]])
def test_padding_has_no_part_in_completed_values(visits):
    node = root([0.1, -0.7, 1.0], visits, [1.0, -2.0, 0.25])
    wide = root([0.1, -0.7, 1.0, *[IMPOSSIBLE] * 2], [*visits, 0, 0], [1.0, -2.0, 0.25, 9, -9])
    np.testing.assert_allclose(read(wide)[:3], read(node), rtol=1e-6)
    assert not np.any(read(wide)[3:])


def test_values_closer_together_than_the_floor_say_that_much_less():
    near, far = ([0.10, 0.11, 0.12], [1.0, 2.0, 3.0])
    visited = lambda values: root([0.0, 0.0, 0.0], [1, 1, 1], values)
    np.testing.assert_allclose(read(visited(near), 0.2), 0.1 * read(visited(near)), rtol=1e-4)
    np.testing.assert_allclose(read(visited(far), 0.2), read(visited(far)), rtol=1e-6)


def test_noise_is_a_mixture_over_candidates_that_exist(keys):
    logits = jnp.array([[0.3, -1.0, 2.0, IMPOSSIBLE]])
    none = with_noise(logits, jnp.array(0.0), 0.3, key=next(keys))
    np.testing.assert_allclose(jax.nn.softmax(none), jax.nn.softmax(logits), atol=1e-6)
    some = jax.nn.softmax(with_noise(logits, jnp.array(0.25), 0.3, key=next(keys)))
    np.testing.assert_allclose(some.sum(), 1, rtol=1e-5)
    assert some[0, 3] == 0
    assert np.all(some[0, :3] >= 0.75 * jax.nn.softmax(logits)[0, :3] - 1e-6)


@pytest.fixture(scope="module", params=["gumbel", "puct"])
def planned(request):
    """A plan of the real model for a discrete, two continuous and a picture task."""
    world = small.small_world(key=jax.random.key(0))
    history = small.history(np.random.default_rng(3), world, (0, 1, 2, 3), 2)
    settings = small.config(search={"kind": request.param}).search
    run = eqx.filter_jit(
        lambda world, history, explore: plan(
            world.bind(jnp.arange(4), 3, small.LIBRARY),
            history,
            Listing(jnp.zeros((0, 2, 0), bool), None, None),
            settings,
            explore,
            key=jax.random.key(1),
        )
    )
    return run(world, history, jnp.array(1.0)), run(world, history, jnp.array(0.0))


def test_the_action_is_one_of_the_candidates_and_has_weight(planned):
    room = np.array([3, 3, 3, 4])[:, None, None]
    for made in planned:
        is_it = np.all(np.isclose(made.candidates, made.action[:, :, None], atol=1e-6), axis=-1)
        assert np.all(np.any(is_it & (np.arange(4) < room), axis=-1))
        assert np.all(np.sum(np.asarray(made.policy) * is_it, axis=-1) > 0)
        np.testing.assert_allclose(made.policy.sum(axis=-1), 1, rtol=1e-5)
        assert not np.any(np.asarray(made.policy)[np.broadcast_to(np.arange(4) >= room, (4, 2, 4))])
        assert np.all(np.isfinite(made.value))
