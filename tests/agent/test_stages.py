"""Growing: what it leaves alone, what trains after it, and what it costs."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from scalezero.agent.act import act
from scalezero.agent.learner import grown, learner, update
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.ready import ready
from scalezero.agent.stages import grow, learnt, merge, stage, trainable, with_dropout
from scalezero.nets.linear import dropped, linear, merged, stack, with_adapter

NUMBERS = jnp.arange(4)
CONFIG = small.config(learn={"weight_decay": 0.1})
RULE = Optimiser(CONFIG.learn, 10)
KEY = jax.random.key(9)
one_update = eqx.filter_jit(
    lambda state, batch: update(state, batch, NUMBERS, small.LIBRARY, CONFIG.learn, RULE)
)


def one_more(world, number: int, *, alphas: bool = True, encoder: bool = False):
    """`world` one stage later."""
    key = jax.random.key(100 + number)
    return grow(world, 2, 0.5, strengths=alphas, encoder=encoder, key=key)


def at_stage(world, stages: int, **options):
    """`world` after `stages` stages."""
    return functools.reduce(lambda w, n: one_more(w, n, **options), range(stages), world)


def shaken(world):
    """`world` with noise on everything learnt, adapters included, so that all of it speaks."""
    rng = np.random.default_rng(5)
    params, rest = eqx.partition(world, learnt(world))
    noise = lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
    return eqx.combine(jax.tree.map(noise, params), rest)


def by_path(tree) -> dict[str, np.ndarray]:
    flat = jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


@pytest.fixture(scope="module")
def world():
    return small.small_world(key=jax.random.key(0))


@pytest.fixture(scope="module")
def batch(world):
    return small.batch(np.random.default_rng(1), world, (0, 1, 2, 3))


@eqx.filter_jit
def look(world, batch):
    """All that a batch shows of a world."""
    bound = world.bind(NUMBERS, 3, small.LIBRARY)
    window = jax.tree.map(lambda x: x[:, :, :3], batch.observation)
    token = bound.action_token(batch.action[:, :, :3], bound.listing(window.text))
    seen = bound.unroll(bound.encode(window), token)
    return seen.at_latent, seen.at_action, bound.value(seen.at_latent)


def decide(world):
    """What the search makes of one moment, with everything it says."""
    rng = np.random.default_rng(2)
    past = small.history(rng, world, (0, 1, 2, 3), 2)
    seen = small.observation(rng, 2, vector_slots=3, image_slots=1, size=world.tasks.vector_size)
    first = jnp.zeros((4, 2), bool)
    explore, key = jnp.ones(()), jax.random.key(3)
    return act(world, NUMBERS, past, seen, small.LIBRARY, first, CONFIG.search, explore, key=key)


@pytest.mark.parametrize("alphas", [True, False])
def test_growing_changes_no_bit_of_what_a_batch_shows(world, batch, alphas):
    before = look(world, batch)
    for stages in (1, 2):
        after = look(at_stage(world, stages, alphas=alphas), batch)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)


def test_growing_changes_no_bit_of_encoders_and_of_experts_in_buckets(world, batch, monkeypatch):
    """Operation by operation: compiled as a whole, they are fused and rounded in other ways."""
    later = at_stage(world, 2, encoder=True)
    picture = batch.observation.image[0, 0, 0]
    tokens = jax.random.normal(jax.random.key(6), (12, 16))
    monkeypatch.setattr("scalezero.nets.grouped.SMALL", 0)
    with jax.disable_jit():
        np.testing.assert_array_equal(world.image(picture), later.image(picture))
        layer, grown_layer = (w.backbone.blocks[0].forward for w in (world, later))
        np.testing.assert_array_equal(layer(tokens)[0], grown_layer(tokens)[0])


def test_growing_changes_no_bit_of_what_the_search_decides(world):
    before, after = decide(world), decide(one_more(world, 0))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_stage_is_the_number_of_adapters(world):
    assert [stage(at_stage(world, stages)) for stages in (0, 1, 3)] == [0, 1, 3]


def test_every_expert_has_an_adapter_of_its_own(world):
    once = one_more(world, 0)
    layer = once.backbone.blocks[0].forward.routed.up
    (adapter,) = layer.adapters
    assert adapter.down.shape == (3, 2, 16)
    assert adapter.up.shape == (3, 8, 2)
    assert adapter.alpha.shape == (3,)
    assert len(np.unique(np.asarray(adapter.down)[:, 0, 0])) == 3
    assert not once.backbone.blocks[0].forward.router.adapters
    assert not once.backbone.blocks[0].forward.shared.first.adapters


@pytest.mark.parametrize(("stages", "alphas"), [(1, True), (3, True), (3, False)])
def test_what_trains_at_each_stage(world, stages, alphas):
    mask = trainable(at_stage(world, stages, alphas=alphas))
    moving = {
        jax.tree_util.keystr(path): moves
        for path, moves in jax.tree.leaves_with_path(mask)
        if path[0].name == "backbone"
    }
    newest = f".adapters[{stages - 1}]"
    for name, moves in moving.items():
        matrices = newest in name and not name.endswith(".alpha")
        older = name.endswith(".alpha") and newest not in name
        assert moves == (matrices or older), name
    assert sum(moving.values()) == 2 * 7 * (2 + (stages if alphas else 0))
    for part in (mask.policy, mask.value, mask.vector.layers.first, mask.image):
        assert all(jax.tree.leaves(part))
    assert not any(jax.tree.leaves(mask.vector.layers.scale))


def test_an_encoder_that_grows_is_frozen_too(world):
    mask = trainable(one_more(world, 0, encoder=True)).image
    moving = [jax.tree_util.keystr(p) for p, moves in jax.tree.leaves_with_path(mask) if moves]
    assert moving
    assert all(".adapters[0]" in name or name.endswith(".alpha") for name in moving)


@pytest.fixture(scope="module")
def twice(world, batch):
    """A learner at stage 2 that has learnt at every stage."""
    state = learner(world, RULE)
    for number in range(2):
        state, _ = one_update(state, batch)
        state = grown(state, RULE, functools.partial(one_more, number=number))
    return state


def test_frozen_leaves_stay_bit_identical_and_the_others_move(twice, batch):
    state, mask = twice, by_path_of_mask(twice.world)
    for _ in range(2):
        state, _ = one_update(state, batch)
    before, after = by_path(twice.world), by_path(state.world)
    assert any(mask.values())
    assert not all(mask.values())
    for name, moves in mask.items():
        if ".scale." not in name:  # running statistics
            assert np.array_equal(before[name], after[name]) != moves, name


def by_path_of_mask(world) -> dict[str, bool]:
    flat = jax.tree.leaves_with_path(trainable(world))
    return {jax.tree_util.keystr(path): moves for path, moves in flat}


def test_only_what_trains_has_moments(twice):
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    params = eqx.filter(twice.world, trainable(twice.world))
    counters = 2  # of the schedule and of Adam
    assert size(twice.moments) == 2 * size(params) + counters
    assert size(params) < size(eqx.filter(twice.world, learnt(twice.world)))


def test_what_goes_on_training_keeps_its_moments(world, batch):
    state, _ = one_update(learner(world, RULE), batch)
    after = grown(state, RULE, functools.partial(one_more, number=0))
    old, new = by_path(state.moments), by_path(after.moments)
    kept = [name for name in new if name in old]
    assert any(".policy." in name for name in kept)
    assert any(name not in old for name in new)
    for name, leaf in new.items():
        np.testing.assert_array_equal(leaf, old.get(name, np.zeros_like(leaf)), err_msg=name)


def test_the_target_grows_the_same_adapters(world):
    state = grown(learner(world, RULE), RULE, functools.partial(one_more, number=0))
    near, far = by_path(state.world), by_path(state.target)
    assert near.keys() == far.keys()
    for name in near:
        if ".adapters[0].down" in name:
            np.testing.assert_array_equal(near[name], far[name])


def test_merging_keeps_the_outputs_to_rounding(world, batch):
    full = shaken(at_stage(world, 2, encoder=True))
    plain = merge(full)
    assert stage(plain) == 0
    assert by_path(plain).keys() == by_path(world).keys()
    for a, b in zip(look(full, batch), look(plain, batch), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)


def test_a_layer_and_its_matrix_agree(keys):
    layer = with_adapter(linear(5, 4, key=next(keys)), 2, 3.0, learnt=True, key=next(keys))
    layer = jax.tree.map(lambda x: x + 0.3, layer)
    x = jax.random.normal(next(keys), (5,))
    np.testing.assert_allclose(layer(x), layer.matrix @ x + layer.bias, rtol=1e-5)
    np.testing.assert_allclose(layer(x), merged(layer)(x), rtol=1e-5)
    assert merged(layer).adapters == ()


def test_a_stack_of_layers_grows_as_one(keys):
    layers = stack(lambda key: linear(5, 4, bias=False, key=key), 3, key=next(keys))
    layers = with_adapter(layers, 2, 3.0, learnt=True, key=next(keys))
    layers = jax.tree.map(lambda x: x + 0.3, layers)
    x = jax.random.normal(next(keys), (5,))
    each = eqx.filter_vmap(lambda layer: layer(x))(layers)
    np.testing.assert_allclose(each, layers.matrix @ x, rtol=1e-5)


def test_dropout_hides_inputs_from_adapters_in_updates_alone(world, batch):
    grown_once = shaken(grow(world, 2, 0.5, strengths=True, encoder=False, key=KEY, dropout=0.5))
    plain = shaken(grow(world, 2, 0.5, strengths=True, encoder=False, key=KEY))
    for one, other in zip(look(grown_once, batch), look(plain, batch), strict=True):
        np.testing.assert_array_equal(one, other)
    two = [with_dropout(grown_once, key=jax.random.key(seed)) for seed in (0, 1)]
    layers = [w.backbone.blocks[0].attention for w in (grown_once, *two)]
    full, first, second = (jax.tree.leaves(eqx.filter(layer, eqx.is_array)) for layer in layers)
    changed = [not np.array_equal(a, b) for a, b in zip(full, first, strict=True)]
    assert any(changed) and not all(changed)  # only what an adapter reads with
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    same = with_dropout(plain, key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, by_path(same), by_path(plain))


def test_a_hidden_input_is_made_up_for_by_the_others(keys):
    layer = with_adapter(
        linear(64, 3, key=next(keys)), 4, 1.0, learnt=False, key=next(keys), dropout=0.25
    )
    layer = eqx.tree_at(lambda tree: tree.adapters[0].up, layer, jnp.ones((3, 4)))
    x = jax.random.normal(next(keys), (64,))
    drops = jax.vmap(lambda key: dropped(layer, key=key)(x))(jax.random.split(next(keys), 4000))
    np.testing.assert_allclose(drops.mean(axis=0), layer(x), atol=0.02)
    assert drops.std(axis=0).min() > 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_growing_compiles_no_search_anew(precision):
    settings = small.config(model={"precision": precision})
    world = small.small_world(settings=settings, key=jax.random.key(0))
    kinds = lambda world: jax.tree.map(lambda x: (x.shape, str(x.dtype)), arrays(world))
    arrays = lambda world: eqx.filter(eqx.filter_eval_shape(ready, world), eqx.is_array_like)
    assert kinds(at_stage(world, 2)) == kinds(at_stage(world, 1)) == kinds(world)
