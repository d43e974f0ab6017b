import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalezero.nets.image import patches_of, resnet, vit
from scalezero.nets.linear import linear, mlp, stack
from scalezero.nets.norms import SimNorm, layer_norm, running_norm
from scalezero.nets.vector import vector_encoder

SHAPE, OUT, PATCH = (16, 24, 3), 10, 8


@pytest.fixture(scope="module")
def pictures():
    """One picture, and it again with one pixel changed in each patch in turn."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, SHAPE).astype(np.uint8)
    many = [first]
    for top in range(0, SHAPE[0], PATCH):
        for left in range(0, SHAPE[1], PATCH):
            other = first.copy()
            other[top + 3, left + 5] = 255 - other[top + 3, left + 5]
            many.append(other)
    return jnp.asarray(np.stack(many))


def encoder(name: str):
    key = jax.random.key(0)
    if name == "resnet":
        return resnet(SHAPE, OUT, channels=4, depth=1, key=key)
    return vit(SHAPE, OUT, patch=PATCH, embed=8, depth=1, heads=2, hidden=8, key=key)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_every_part_of_a_picture_can_be_seen(name, pictures):
    y = eqx.filter_jit(eqx.filter_vmap(encoder(name)))(pictures)
    assert y.shape == (len(pictures), OUT)
    assert y.dtype == jnp.float32
    assert np.all(np.isfinite(y))
    assert np.all(np.abs(y[1:] - y[:1]).max(axis=1) > 1e-5)


@pytest.mark.parametrize("side", [1, 4, PATCH])
def test_patches_are_squares_row_by_row(pictures, side):
    picture = np.asarray(pictures[0])
    squares = [
        picture[top : top + side, left : left + side].reshape(-1)
        for top in range(0, SHAPE[0], side)
        for left in range(0, SHAPE[1], side)
    ]
    np.testing.assert_array_equal(patches_of(pictures[0], side), np.stack(squares))


@pytest.mark.parametrize("side", [9, 16, 23])
def test_a_residual_network_takes_pictures_of_any_size(side):
    net = resnet((side, side, 1), OUT, channels=4, depth=1, key=jax.random.key(0))
    shape = eqx.filter_eval_shape(net, jnp.zeros((side, side, 1), jnp.uint8)).shape
    assert shape == (OUT,)


def test_the_class_alone_is_what_a_whole_last_block_says_of_it(keys):
    block = vit(
        SHAPE, OUT, patch=PATCH, embed=8, depth=1, heads=2, hidden=8, key=next(keys)
    ).blocks[0]
    x = jax.random.normal(next(keys), (5, 8))
    np.testing.assert_allclose(block(x, 1)[0], block(x, 5)[0], atol=1e-6)


@pytest.mark.slow
def test_computing_a_vision_transformer_anew_changes_no_gradient(pictures):
    def pull(rematerialise):
        size = {"patch": PATCH, "embed": 8, "depth": 2, "heads": 2, "hidden": 8}
        net = vit(SHAPE, OUT, **size, rematerialise=rematerialise, key=jax.random.key(0))
        return eqx.filter_grad(lambda net: jnp.sum(jnp.sin(jax.vmap(net)(pictures))))(net)

    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    jax.tree.map(near, jax.tree.leaves(pull(False)), jax.tree.leaves(pull(True)))


def test_places_of_a_picture_differ(pictures):
    """The same patches in another order are another picture."""
    picture = pictures[0]
    swapped = jnp.concatenate([picture[PATCH:], picture[:PATCH]])
    y = jax.vmap(encoder("vit"))(jnp.stack([picture, swapped]))
    assert np.abs(y[0] - y[1]).max() > 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_norm_keeps_the_type_and_gives_mean_0_and_variance_1(keys, dtype):
    x = (3 + 5 * jax.random.normal(next(keys), (64,))).astype(dtype)
    y = layer_norm(64)(x)
    assert y.dtype == dtype
    wide = np.asarray(y.astype(jnp.float32))
    assert abs(wide.mean()) < 1e-2
    assert abs(wide.std() - 1) < 1e-2


def test_a_layer_norm_does_not_see_shift_and_scale(keys):
    x = jax.random.normal(next(keys), (64,))
    norm = layer_norm(64)
    np.testing.assert_allclose(norm(7 + 3 * x), norm(x), atol=1e-4)


def test_a_layer_norm_of_a_constant_is_zero():
    np.testing.assert_array_equal(layer_norm(8)(jnp.full(8, 3.0)), jnp.zeros(8))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_group_of_a_sim_norm_is_a_distribution(keys, dtype):
    x = (10 * jax.random.normal(next(keys), (24,))).astype(dtype)
    y = SimNorm(8)(x)
    assert y.dtype == dtype
    groups = np.asarray(y.astype(jnp.float32)).reshape(3, 8)
    assert groups.min() >= 0
    np.testing.assert_allclose(groups.sum(axis=1), 1, atol=1e-6 if dtype == jnp.float32 else 1e-2)


def test_groups_of_a_sim_norm_do_not_see_each_other(keys):
    x = jax.random.normal(next(keys), (16,))
    a, b = SimNorm(8)(x), SimNorm(8)(x.at[3].add(1.0))
    np.testing.assert_array_equal(a[8:], b[8:])
    assert not np.array_equal(a[:8], b[:8])


def test_a_vector_encoder_takes_entries_of_any_scale(keys):
    encode = vector_encoder(4, 16, OUT, key=next(keys))
    x = jnp.array([[1e-3, -1.0, 50.0, 1e6], [1e-3, -1.1, 50.0, 1e6]])
    y = encode(x)
    assert y.shape == (2, OUT)
    assert np.all(np.isfinite(y))
    assert np.abs(y[0] - y[1]).max() > 1e-4


def test_a_layer_starts_with_the_promised_spread_and_no_bias(keys):
    layer = linear(400, 100, gain=2.0, key=next(keys))
    assert abs(float(jnp.std(layer.weight)) / (0.88 * 2 / 20) - 1) < 0.02  # 0.88: cut at 2σ
    assert not np.any(layer.bias)
    assert linear(4, 3, bias=False, key=next(keys)).bias is None


def test_an_mlp_without_gain_starts_as_zero(keys):
    y = mlp(4, 8, 3, gain=0.0, key=next(keys))(jnp.ones(4))
    np.testing.assert_array_equal(y, jnp.zeros(3))


def test_a_stack_holds_layers_that_differ(keys):
    layers = stack(lambda k: linear(4, 3, key=k), 2, key=next(keys))
    assert layers.weight.shape == (2, 3, 4)
    assert not np.array_equal(layers.weight[0], layers.weight[1])


def test_a_running_norm_comes_to_know_the_mean_and_the_spread_of_what_it_sees():
    rng, norm = np.random.default_rng(0), running_norm(3)
    data = rng.normal([5.0, -2.0, 0.0], [0.1, 3.0, 1.0], (50, 64, 3)).astype(np.float32)
    for batch in data:
        norm = norm.watch(jnp.asarray(batch), jnp.ones(64))
    flat = data.reshape(-1, 3)
    np.testing.assert_allclose(norm.mean, flat.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.variance, flat.var(0), rtol=1e-3)
    unit = np.asarray(jax.vmap(norm)(jnp.asarray(flat)))
    undone = np.sign(unit) * np.expm1(np.abs(unit))
    np.testing.assert_allclose(undone.std(0), 1, rtol=0.02)


def test_rows_of_weight_0_leave_a_running_norm_as_it_was():
    norm = running_norm(2).watch(jnp.arange(6.0).reshape(3, 2), jnp.ones(3))
    rows = jnp.array([[1.0, 2.0], [jnp.inf, jnp.nan]])
    seen = norm.watch(rows, jnp.array([1.0, 0.0]))
    alone = norm.watch(rows[:1], jnp.ones(1))
    for one, other in zip(jax.tree.leaves(seen), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    unseen = norm.watch(rows, jnp.zeros(2))
    for before, after in zip(jax.tree.leaves(norm), jax.tree.leaves(unseen), strict=True):
        np.testing.assert_array_equal(before, after)


def test_gradients_do_not_reach_running_statistics():
    norm = running_norm(2)
    gradient = jax.grad(lambda norm: jnp.sum(norm(jnp.ones(2))))(norm)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
