import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from scalezero.agent.act import act, act_at_random, empty_history, remember
from scalezero.agent.ready import ready
from scalezero.agent.records import History
from scalezero.agent.stages import grow

NUMBERS, ROWS = jnp.arange(4), 2
SETTINGS = small.config().search


@pytest.fixture(scope="module")
def world():
    return small.small_world(key=jax.random.key(0))


def seen(seed: int):
    rng = np.random.default_rng(seed)
    return small.observation(rng, ROWS, vector_slots=3, image_slots=1, size=4)


def past(world, seed: int) -> History:
    return small.history(np.random.default_rng(seed), world, (0, 1, 2, 3), ROWS)


def decide(world, history, observation, first, explore=1.0):
    first = jnp.broadcast_to(jnp.asarray(first), (4, ROWS))
    return act(
        world,
        NUMBERS,
        history,
        observation,
        small.LIBRARY,
        first,
        SETTINGS,
        jnp.array(explore, jnp.float32),
        key=jax.random.key(5),
    )


def near(a, b):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=2e-5), a, b)


def test_a_first_observation_has_no_past(world):
    empty = empty_history(world, 4, ROWS, 2)
    action, plan, history = decide(world, past(world, 1), seen(0), True)
    action_too, plan_too, history_too = decide(world, empty, seen(0), True)
    near((action, plan), (action_too, plan_too))
    near(history.latent[:, :, -1], history_too.latent[:, :, -1])
    assert np.all(np.asarray(history.length) == 1)
    # An empty history needs not be told.
    near(decide(world, empty, seen(0), False)[:2], (action, plan))


def test_the_past_matters_otherwise(world):
    one = decide(world, past(world, 1), seen(0), False)[1]
    two = decide(world, past(world, 2), seen(0), False)[1]
    assert not np.allclose(one.value, two.value, atol=1e-3)


def test_a_plan_does_not_depend_on_other_rows(world):
    history, observation = past(world, 1), seen(0)
    other_history, other_seen = past(world, 2), seen(3)
    # Row 0 of every slot stays, row 1 becomes another environment.
    keep = lambda a, b: jnp.concatenate([a[:, :1], b[:, 1:]], axis=1)
    mixed = jax.tree.map(keep, (history, observation), (other_history, other_seen))
    plain = decide(world, history, observation, False)
    crowd = decide(world, *mixed, False)
    row = lambda tree: jax.tree.map(lambda x: x[:, 0], tree)
    near(row(crowd), row(plain))
    assert not np.allclose(crowd[1].value[:, 1], plain[1].value[:, 1], atol=1e-3)


def test_environments_get_actions_they_take(world):
    action, plan, history = decide(world, past(world, 1), seen(0), False)
    assert np.all(np.isin(action[0, :, 0], [0, 1, 2]))
    assert np.all(np.isin(action[3, :, 0], [0, 1, 2, 3]))
    assert np.abs(action).max(where=(np.arange(4) % 3 > 0)[:, None, None], initial=0) <= 1
    np.testing.assert_allclose(action[1:3], np.tanh(plan.action[1:3]), atol=1e-6)
    bound = world.bind(NUMBERS, 3, small.LIBRARY)
    token = bound.action_token(plan.action, bound.listing(seen(0).text))
    near(history.token[:, :, -1], token)
    assert not np.any(action[2, :, 1])  # the line has one entry


def test_without_exploring_nothing_depends_on_the_key_in_a_discrete_task(world):
    history, observation = past(world, 1), seen(0)
    first = jnp.zeros((4, ROWS), bool)
    plans = [
        act(
            world,
            NUMBERS,
            history,
            observation,
            small.LIBRARY,
            first,
            SETTINGS,
            jnp.zeros(()),
            key=jax.random.key(seed),
        )[1]
        for seed in range(3)
    ]
    for slot in (0, 3):
        for other in plans[1:]:
            np.testing.assert_array_equal(other.action[slot], plans[0].action[slot])
            np.testing.assert_allclose(other.policy[slot], plans[0].policy[slot], atol=1e-6)


def test_memory_shifts_and_counts(world):
    history = past(world, 1)
    latent = jnp.ones((4, ROWS, 16))
    first = jnp.zeros((4, ROWS), bool).at[0, 0].set(True)
    later = remember(history, latent, first)
    np.testing.assert_array_equal(later.latent[:, :, 0], history.latent[:, :, 1])
    np.testing.assert_array_equal(later.latent[:, :, 1], latent)
    np.testing.assert_array_equal(later.token[:, :, 0], history.token[:, :, 1])
    assert not np.any(later.token[:, :, 1])
    expected = np.minimum(np.asarray(history.length) + 1, 2)
    expected[0, 0] = 1
    np.testing.assert_array_equal(later.length, expected)


def test_a_small_world_of_float32_that_has_not_grown_is_ready(world):
    assert ready(world) is world


@pytest.fixture(scope="module")
def drawn():
    """What five tasks' environments, many of each, do at random; each page lists two of three."""
    rng = np.random.default_rng(0)
    observation = small.observation(rng, 2000, vector_slots=3, image_slots=1, text_slots=1, size=4)
    settings = small.config(learn={"sigma_max": 1.5})
    world = small.small_world(small.WITH_TEXT, settings=settings, key=jax.random.key(0))
    return act_at_random(
        world.tasks, world.shape, jnp.arange(5), observation, key=jax.random.key(1)
    )


@pytest.mark.parametrize(("slot", "choices"), [(0, 3), (3, 4), (4, 2)])
def test_at_random_each_choice_that_there_is_is_as_likely(drawn, slot, choices):
    action, plan = drawn
    share = np.bincount(np.asarray(action[slot, :, 0], int), minlength=4) / 2000
    np.testing.assert_allclose(share[:choices], 1 / choices, atol=0.04)
    assert not np.any(share[choices:])
    np.testing.assert_allclose(plan.policy[slot, :, :choices], 1 / choices, atol=1e-6)
    np.testing.assert_allclose(plan.policy[slot].sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize(("slot", "dimensions"), [(1, 2), (2, 1)])
def test_at_random_continuous_actions_are_one_of_the_widest_gaussian(drawn, slot, dimensions):
    action, plan = drawn
    sampled = np.asarray(plan.candidates[slot, :, : SETTINGS.candidates])
    taken = np.asarray(plan.action[slot])
    assert np.all(np.any(np.all(sampled == taken[:, None], axis=-1), axis=-1))
    np.testing.assert_allclose(action[slot], np.tanh(taken), atol=1e-6)
    np.testing.assert_allclose(sampled[..., :dimensions].std(), 1.5, atol=0.04)
    np.testing.assert_allclose(taken[:, :dimensions].mean(0), 0.0, atol=0.1)
    assert not np.any(sampled[..., dimensions:])
    np.testing.assert_allclose(plan.policy[slot, :, : SETTINGS.candidates], 1 / 3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_large_experts_stand_apart_in_a_ready_world_that_decides_the_same(precision, monkeypatch):
    monkeypatch.setattr("scalezero.agent.ready.CACHED_BYTES", 0)
    monkeypatch.setattr("scalezero.agent.ready.units", lambda: "avx512")
    # Nothing else is compiled at this width.
    settings = small.config(model={"expert_width": 12, "precision": precision})
    world = small.small_world(settings=settings, key=jax.random.key(0))
    once = ready(world)
    decisions = [decide(each, past(world, 1), seen(0), False) for each in (world, once)]
    jax.tree.map(np.testing.assert_array_equal, *decisions)


@pytest.mark.parametrize(
    ("precision", "grows", "units", "parts"),
    [
        ("float32", False, "amx", True),
        ("float32", True, None, True),
        ("bfloat16", False, "amx", False),
        ("bfloat16", False, None, True),
        ("bfloat16", True, "avx512", True),
    ],
)
def test_large_experts_stand_apart_on_a_cpu_but_narrow_ones_with_amx(
    precision, grows, units, parts, monkeypatch
):
    monkeypatch.setattr("scalezero.agent.ready.CACHED_BYTES", 0)
    monkeypatch.setattr("scalezero.agent.ready.units", lambda: units)
    settings = small.config(model={"precision": precision})
    world = small.small_world(settings=settings, key=jax.random.key(0))
    if grows:
        world = grow(world, 2, 0.5, strengths=True, encoder=False, key=jax.random.key(2))
    once = ready(world)
    assert world.backbone.can_part
    assert once.backbone.can_part != (parts and jax.default_backend() == "cpu")
    assert eqx.tree_equal(ready(once), once)
    if precision == "float32":
        kept = [each.backbone.last.gain for each in (once, world)]
        assert grows or kept[0] is kept[1]  # only experts are copied
    tokens = jax.random.normal(jax.random.key(1), (3, 6, world.choice_tokens.shape[-1]))
    features = [each.backbone.window(tokens)[0] for each in (world, once)]
    np.testing.assert_allclose(*features, atol=1e-5 if precision == "float32" else 0.2)


@pytest.mark.slow
def test_a_ready_world_decides_the_same_and_stays_ready():
    settings = small.config(model={"precision": "bfloat16"})
    world = small.small_world(settings=settings, key=jax.random.key(0))
    once = ready(world)
    narrow = {leaf.dtype for leaf in jax.tree.leaves((once.backbone, once.image))}
    assert jnp.dtype(jnp.bfloat16) in narrow
    assert eqx.tree_equal(ready(once), once)
    decisions = [decide(each, past(world, 1), seen(0), False) for each in (world, once)]
    jax.tree.map(np.testing.assert_array_equal, *decisions)
