import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from scalezero.agent.heads import per_task
from scalezero.agent.records import History, Observation
from scalezero.agent.tasks import in_slot_order
from scalezero.envs.spec import Discrete, Image, Vector
from scalezero.nets import grouped
from scalezero.nets.linear import mlp

NUMBERS, ROWS, TIME = (0, 1, 2, 3), 2, 3


@pytest.fixture(scope="module")
def world():
    return small.small_world(key=jax.random.key(0))


@pytest.fixture(scope="module")
def batch(world):
    return small.batch(np.random.default_rng(1), world, NUMBERS, ROWS, TIME, n_step=1)


@eqx.filter_jit
def look(world, task, batch):
    """All the model says about windows: one dict, its arrays `slot row …`."""
    bound = world.bind(task, len(batch.observation.vector), small.LIBRARY)
    window = jax.tree.map(lambda x: x[:, :, :TIME], batch.observation)
    latent = bound.encode(window)
    listing = bound.listing(window.text)
    seen = bound.unroll(latent, bound.action_token(batch.action[:, :, :TIME], listing))
    policy = bound.policy(seen.at_latent, listing)
    return {
        "latent": latent,
        "at_latent": seen.at_latent,
        "at_action": seen.at_action,
        "policy": policy.log_prob(batch.candidates),
        "value": bound.value(seen.at_latent),
        "reward": bound.reward(seen.at_action),
        "next_latent": bound.next_latent(seen.at_action),
    }


def reorder(batch, order):
    """The batch with its slots in another order; those with vectors stay first."""
    vectors = len(batch.observation.vector)
    order = np.asarray(order)
    seen = Observation(
        batch.observation.vector[order[:vectors]],
        batch.observation.image[order[vectors:] - vectors],
        batch.observation.text,
    )
    rest = jax.tree.map(lambda x: x[order], eqx.tree_at(lambda b: b.observation, batch, None))
    return eqx.tree_at(lambda b: b.observation, rest, seen, is_leaf=lambda x: x is None)


def near(a, b, **tolerance):
    check = lambda p, q: np.testing.assert_allclose(
        p, q, **{"atol": 2e-5, "rtol": 1e-4} | tolerance
    )
    jax.tree.map(check, a, b)


def test_the_order_of_slots_does_not_matter(world, batch):
    order = np.array([2, 0, 1, 3])
    plain = look(world, jnp.array(NUMBERS), batch)
    other = look(world, jnp.array(NUMBERS)[order], reorder(batch, order))
    near(other, {name: x[order] for name, x in plain.items()})


@pytest.mark.parametrize("count", [1, 2, TIME])
def test_later_features_are_those_of_the_whole_window(world, batch, count):
    bound = world.bind(jnp.array(NUMBERS), len(batch.observation.vector), small.LIBRARY)
    seen = jax.tree.map(lambda x: x[:, :, :-1], batch.observation)
    latent, token = bound.encode(seen), bound.action_token(batch.action, bound.listing(seen.text))
    first = jnp.arange(len(NUMBERS) * ROWS).reshape(-1, ROWS) % (latent.shape[2] - count + 1)
    later = eqx.filter_jit(bound.later)(latent, token, first, count)
    whole = eqx.filter_jit(bound.unroll)(latent, token).at_latent
    moment = first[:, :, None] + jnp.arange(count)[None, None]
    near(later, jnp.take_along_axis(whole, moment[..., None], axis=2))


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "buckets"])
def test_which_other_tasks_are_in_the_batch_does_not_matter(world, batch, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(grouped, "SMALL", 0)
    # Slots 1 and 2 get other tasks, with other observations and actions.
    other = small.batch(np.random.default_rng(2), world, (0, 2, 0, 3), ROWS, TIME, n_step=1)
    keep = lambda a, b: b.at[0].set(a[0]) if len(b) > 1 else b
    mixed = jax.tree.map(keep, batch, other)
    view = look if dense else eqx.filter_jit(lambda *args: look.__wrapped__(*args))
    plain = view(world, jnp.array(NUMBERS), batch)
    crowd = view(world, jnp.array([0, 2, 0, 3]), mixed)
    near({k: x[0] for k, x in crowd.items()}, {k: x[0] for k, x in plain.items()})
    assert not np.allclose(crowd["value"][1], plain["value"][1])


def test_rows_do_not_see_each_other(world, batch):
    plain = look(world, jnp.array(NUMBERS), batch)
    swapped = look(world, jnp.array(NUMBERS), jax.tree.map(lambda x: x[:, ::-1], batch))
    near(swapped, {name: x[:, ::-1] for name, x in plain.items()})


def test_weights_of_padded_vector_entries_cannot_matter(world, batch):
    sizes = np.array([2, 4, 3])  # of the vectors of tasks 0 to 2
    shown = np.arange(world.tasks.vector_size) < sizes[:, None]
    padded = jnp.where(shown[:, None, None], batch.observation.vector, 0.0)
    given = eqx.tree_at(lambda b: b.observation.vector, batch, padded)
    weight = world.vector.layers.first.weight
    shaken = jnp.where(shown[:, None, :], weight, 1e3)
    other = eqx.tree_at(lambda w: w.vector.layers.first.weight, world, shaken)
    near(look(other, jnp.array(NUMBERS), given), look(world, jnp.array(NUMBERS), given))


def test_padded_action_entries_cannot_matter(world, batch):
    used = np.array([[1, 0], [1, 1], [1, 0], [1, 0]], bool)[:, None, None]
    garbage = jnp.where(used, batch.action, 1e3)
    other = eqx.tree_at(lambda b: b.action, batch, garbage)
    near(look(world, jnp.array(NUMBERS), other), look(world, jnp.array(NUMBERS), batch))


def test_actions_and_observations_do_matter(world, batch):
    plain = look(world, jnp.array(NUMBERS), batch)
    moved = eqx.tree_at(lambda b: b.action, batch, batch.action.at[..., 0].add(1.0))
    other = look(world, jnp.array(NUMBERS), moved)
    for slot in range(4):
        assert not np.allclose(other["reward"][slot], plain["reward"][slot], atol=1e-5)
        np.testing.assert_array_equal(other["value"][slot, :, 0], plain["value"][slot, :, 0])


@eqx.filter_jit
def plan_ahead(world, task, latent, action):
    """Features as a search reads them: two decisions of context, then two tokens."""
    bound = world.bind(task, 3, small.LIBRARY)
    rows = latent.shape[:2]
    token = bound.action_token(action, bound.listing(jnp.zeros((0, *action.shape[1:3], 1), int)))
    history = History(latent[:, :, :2], token[:, :, :2].at[:, :, 1].set(0), jnp.full(rows, 2))
    root, cache = bound.root(history)
    at_action, cache = bound.step(token[:, :, 1], cache)
    at_latent, _ = bound.step(latent[:, :, 2], cache)
    return root, at_action, at_latent


def test_a_search_sees_what_learning_saw(world, batch):
    said = look(world, jnp.array(NUMBERS), batch)
    root, at_action, at_latent = plan_ahead(
        world, jnp.array(NUMBERS), said["latent"], batch.action[:, :, :TIME]
    )
    near(root, said["at_latent"][:, :, 1])
    near(at_action, said["at_action"][:, :, 1])
    near(at_latent, said["at_latent"][:, :, 2])


def test_latents_and_their_predictions_are_normalised(world, batch):
    fresh = small.small_world(key=jax.random.key(0), shake=0.0)
    said = look(fresh, jnp.array(NUMBERS), batch)
    for name in ("latent", "next_latent"):
        np.testing.assert_allclose(said[name].mean(axis=-1), 0, atol=1e-4)
        np.testing.assert_allclose(said[name].std(axis=-1), 1, atol=1e-2)


def test_values_and_rewards_start_at_zero_and_policies_nearly_uniform(batch):
    fresh = small.small_world(key=jax.random.key(0), shake=0.0)
    said = look(fresh, jnp.array(NUMBERS), batch)
    np.testing.assert_allclose(said["value"], 0, atol=1e-5)
    np.testing.assert_allclose(said["reward"], 0, atol=1e-5)
    np.testing.assert_allclose(said["policy"][0, ..., :3], np.log(1 / 3), atol=0.1)


@pytest.mark.slow
def test_bfloat16_stays_within_3_hundredths_of_float32(world, batch):
    """Of the largest entry. Encoders of vectors are not narrow, so their latents are the same."""
    wide = look(world, jnp.array(NUMBERS), batch)
    settings = small.config(model={"precision": "bfloat16"})
    narrow = small.small_world(settings=settings, key=jax.random.key(0))
    said = look(narrow, jnp.array(NUMBERS), batch)
    np.testing.assert_array_equal(said["latent"][:3], wide["latent"][:3])
    for name in ("latent", "at_latent", "at_action"):
        assert said[name].dtype == jnp.float32
        error = np.abs(said[name] - wide[name]).max() / np.abs(wide[name]).max()
        assert 0 < error < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model"),
    [
        (small.THREE, {"experts": 0}),
        (small.LINE, {"latent_norm": "sim"}),
        (small.SEEN, {"image_encoder": "resnet", "resnet_channels": 4}),
    ],
    ids=["discrete, dense", "continuous, SimNorm", "pictures, ResNet"],
)
def test_a_run_of_one_task_of_any_kind_works(task, model):
    world = small.small_world((task,), settings=small.config(model=model), key=jax.random.key(0))
    batch = small.batch(np.random.default_rng(1), world, (0,), ROWS, TIME, n_step=1)
    said = look(world, jnp.array([0]), batch)
    assert all(np.all(np.isfinite(x)) for x in said.values())


def test_tasks_with_vectors_come_first_and_otherwise_stay_in_order():
    mixed = (small.SEEN, small.PLANE, small.THREE)
    assert in_slot_order(mixed) == (small.PLANE, small.THREE, small.SEEN)


def test_pictures_of_two_shapes_are_refused():
    large = small.task("t/large", Image(32, 32, 1), Discrete(2))
    with pytest.raises(ValueError, match="one run needs one shape"):
        small.table((small.SEEN, large))


def test_tasks_of_one_vocabulary_share_their_actions_and_others_do_not():
    one = small.task("t/one", Vector(2), Discrete(3, vocabulary="pad"))
    two = small.task("t/two", Vector(2), Discrete(5, vocabulary="pad"))
    table = small.table((one, small.THREE, two))
    assert table.vocabulary == (0, 1, 0)
    assert table.vocabularies == 2


def test_a_world_watches_known_rows_of_the_tasks_in_the_batch(world, batch):
    numbers = jnp.array([0, 0, 2, 3])
    seen = batch.observation.vector
    unknown = eqx.tree_at(
        lambda b: (b.known, b.observation.vector),
        batch,
        (batch.known.at[:, :, -1].set(False), seen.at[:, :, -1].set(1e4)),
    )
    scale = world.watch(unknown, numbers).vector.layers.scale
    np.testing.assert_allclose(scale.mean[0], np.mean(seen[:2, :, :-1], axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(scale.mean[2], np.mean(seen[2, :, :-1], axis=(0, 1)), rtol=1e-4)
    np.testing.assert_array_equal(scale.mean[1], 0)
    np.testing.assert_array_equal(scale.batches, [1, 0, 1])


def test_heads_of_no_slots_give_nothing(keys):
    heads = per_task(lambda key: mlp(4, 8, 3, key=key), 2, key=next(keys))
    nothing = heads.bind(jnp.zeros(0, jnp.int32))(jnp.zeros((0, 2, 4)))
    assert nothing.shape == (0, 2, 3)
