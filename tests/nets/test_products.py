import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalezero.nets.linear import linear, merged, mlp, narrowed, stack, with_adapter
from scalezero.nets.products import BLOCK, FEW, FEW_NARROW, LARGE, outer, product

KINDS = ["float32", "bfloat16"]
NARROW = 2**-8  # what rounding to bfloat16 changes a number by, relative to it
ON_CPU = jax.default_backend() == "cpu"


def is_rounded(y) -> bool:
    """Whether all of it is bfloat16: what stood in columns is not, and tells by this."""
    return bool(np.all(y == y.astype(jnp.bfloat16).astype(jnp.float32)))


@pytest.fixture
def factors(keys):
    """A matrix, and vectors on two axes."""
    return jax.random.normal(next(keys), (5, 3)), jax.random.normal(next(keys), (2, 4, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_of_many_vectors_is_that_of_each(factors, kind):
    matrix, x = factors[0].astype(kind), factors[1]
    whole = product(matrix, x)
    assert whole.dtype == jnp.float32
    assert whole.shape == (2, 4, 5)
    np.testing.assert_allclose(whole, jax.vmap(jax.vmap(lambda x: product(matrix, x)))(x))


@pytest.mark.parametrize("vectors", [1, FEW, FEW + 1, FEW_NARROW, FEW_NARROW + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_few_vectors_and_many_meet_a_large_matrix_alike(keys, kind, vectors):
    """By whichever way, values and gradients are those of a product in float64, to rounding."""
    matrix = jax.random.normal(next(keys), (LARGE // 256, 256)).astype(kind)
    x, weight = (jax.random.normal(next(keys), (vectors, 256)).astype(kind) for _ in range(2))
    y, back = jax.vjp(product, matrix, x)
    slopes = back(weight.astype(jnp.float32))
    m, x, w = (np.asarray(each, np.float64) for each in (matrix, x, weight))
    for mine, true in zip((y, *slopes), (x @ m.T, w.T @ x, w @ m), strict=True):
        bound = (1e-6 if kind == KINDS[0] else NARROW) * np.abs(true).max()
        np.testing.assert_allclose(np.asarray(mine, np.float64), true, atol=bound)
    if kind != KINDS[0] and ON_CPU:
        assert is_rounded(y) == (vectors > FEW_NARROW)


@pytest.mark.parametrize("kind", KINDS)
def test_large_matrices_of_many_heads_meet_few_vectors_each(keys, kind):
    heads, vectors = jax.vmap(product), jax.random.normal(next(keys), (3, 7, 256)).astype(kind)
    matrices = jax.random.normal(next(keys), (3, LARGE // 256, 256)).astype(kind)
    weight = jax.random.normal(next(keys), (3, 7, LARGE // 256)).astype(kind)
    y, back = jax.vjp(heads, matrices, vectors)
    assert is_rounded(y) == (kind != KINDS[0] and not ON_CPU)
    m, x, w = (np.asarray(each, np.float64) for each in (matrices, vectors, weight))
    sums = ("hoi,hvi->hvo", m, x), ("hvo,hvi->hoi", w, x), ("hoi,hvo->hvi", m, w)
    for mine, each in zip((y, *back(weight.astype(jnp.float32))), sums, strict=True):
        true = np.einsum(*each)
        bound = (1e-6 if kind == KINDS[0] else NARROW) * np.abs(true).max()
        np.testing.assert_allclose(np.asarray(mine, np.float64), true, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_no_vectors_have_no_products(factors, kind):
    nothing = jnp.zeros((2, 0, 3))
    assert product(factors[0].astype(kind), nothing).shape == (2, 0, 5)


def test_a_narrow_product_and_its_gradients_differ_by_rounding_alone(factors):
    def loss(matrix, x, kind):
        return jnp.sum(jnp.sin(product(matrix.astype(kind), x)))

    wide, narrow = (jax.grad(loss, argnums=(0, 1))(*factors, kind) for kind in KINDS)
    for mine, true in zip(narrow, wide, strict=True):
        assert mine.dtype == jnp.float32
        assert 0 < np.abs(mine - true).max() < 8 * NARROW * np.abs(true).max()


def test_all_products_of_a_narrow_gradient_are_narrow(factors):
    matrix, x = factors[0].astype(jnp.bfloat16), factors[1]
    loss = lambda matrix, x: jnp.sum(jnp.sin(product(matrix, x)))
    traced = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(matrix, x))
    lines = [line for line in traced.splitlines() if "dot_general" in line]
    assert len(lines) == 3
    assert all(":bf16" in line.split("=")[0] for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_on_axes_and_in_a_vmap_give_one_gradient(factors, kind):
    """To rounding: of one sum at once, and of a sum of sums that are rounded themselves."""
    axes = lambda matrix, x: product(matrix, x)
    each = jax.vmap(jax.vmap(product, (None, 0)), (None, 0))
    loss = lambda way, matrix, x: jnp.sum(jnp.sin(way(matrix.astype(kind), x)))
    mine, other = (jax.grad(loss, argnums=(1, 2))(way, *factors) for way in (axes, each))
    for a, b in zip(mine, other, strict=True):
        atol = (1e-6 if kind == KINDS[0] else 8 * NARROW) * np.abs(b).max()
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("vectors", [1, BLOCK, 3 * BLOCK, 3 * BLOCK + 1])
def test_outer_products_in_blocks_lose_no_vector(keys, vectors):
    left, right = (jax.random.normal(next(keys), (2, vectors, n)) for n in (5, 3))
    narrow = outer(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16))
    wide = outer(left, right)
    np.testing.assert_allclose(narrow, wide, atol=8 * NARROW * np.abs(wide).max())


@pytest.mark.parametrize("kind", KINDS)
def test_outer_products_are_summed_over_vectors_for_each_expert(keys, kind):
    left, right = (jax.random.normal(next(keys), (2, 7, size)).astype(kind) for size in (5, 3))
    true = np.einsum("eva,evb->eab", *(np.asarray(x, np.float64) for x in (left, right)))
    mine = outer(left, right)
    assert mine.dtype == left.dtype
    np.testing.assert_allclose(
        np.asarray(mine, np.float64), true, atol=1e-5 + 0.05 * (kind != KINDS[0])
    )


def test_narrowing_touches_matrices_alone_and_leaves_routers(keys):
    layer = with_adapter(linear(3, 2, key=next(keys)), 1, 1.0, learnt=True, key=next(keys))
    tree = narrowed({"layer": layer, "mlp": mlp(3, 4, 2, key=next(keys))}, "bfloat16")
    narrow = [layer.weight.dtype for layer in (tree["layer"], tree["mlp"].first, tree["mlp"].last)]
    (adapter,) = tree["layer"].adapters
    assert {*narrow, adapter.up.dtype, adapter.down.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert {tree["layer"].bias.dtype, adapter.alpha.dtype} == {jnp.dtype(jnp.float32)}
    x = jnp.ones(3)
    assert tree["layer"](x).dtype == tree["mlp"](x).dtype == jnp.float32


def test_what_adapters_add_to_experts_is_not_lost_beside_narrow_weights(keys):
    many = stack(lambda k: linear(64, 32, bias=False, key=k), 3, key=next(keys))
    grown = with_adapter(many, 4, 1.0, learnt=True, key=next(keys))
    up = 1e-3 * jax.random.normal(next(keys), grown.adapters[0].up.shape)
    grown = eqx.tree_at(lambda layer: layer.adapters[0].up, grown, up)
    once = narrowed(grown, "bfloat16")
    np.testing.assert_array_equal(once.matrix, narrowed(merged(grown), "bfloat16").weight)
    added = grown.matrix - grown.weight
    seen = (once.matrix - narrowed(many, "bfloat16").weight).astype(jnp.float32)
    assert abs(np.vdot(seen, added) / np.vdot(added, added) - 1) < 0.2
