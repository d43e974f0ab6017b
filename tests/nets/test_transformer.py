import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalezero.bench.work import work
from scalezero.nets.attention import Ring, at_places, rotate
from scalezero.nets.linear import narrowed
from scalezero.nets.transformer import Cache, Transformer, transformer

WINDOW, TOKENS, EMBED, LAYERS, HEADS = 5, 13, 16, 2, 2
START = jnp.array([0, 3, 8])
ROWS = len(START)


def backbone(
    routed: int, layers: int = LAYERS, window: int = WINDOW, rematerialise: bool = False
) -> Transformer:
    """A small backbone; with `routed` = 0, a dense one."""
    return transformer(
        EMBED,
        layers,
        HEADS,
        window,
        routed=routed,
        routed_hidden=8,
        shared_hidden=8,
        picks=1,
        router="trained",
        rematerialise=rematerialise,
        key=jax.random.key(1),
    )


@pytest.fixture(scope="module", params=[0, 3], ids=["dense", "experts"])
def model(request):
    return backbone(request.param)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(2), (ROWS, TOKENS, EMBED))


@eqx.filter_jit
def sequence(model, tokens, start):
    return model.sequence(tokens, start)


@eqx.filter_jit
def walk(model, tokens, cache):
    """The features of `tokens`, one step after the other."""

    def step(cache, token):
        feature, cache = model.step(token, cache)
        return cache, feature

    _, features = jax.lax.scan(step, cache, jnp.moveaxis(tokens, 1, 0))
    return jnp.moveaxis(features, 0, 1)


def empty(start) -> Cache:
    nothing = jnp.zeros((ROWS, WINDOW, HEADS, EMBED // HEADS))
    rings = tuple(Ring(nothing, nothing) for _ in range(LAYERS))
    return Cache(rings, jnp.zeros_like(start), start)


def real(start):
    return np.arange(TOKENS) >= np.asarray(start)[:, None]


def test_stepping_from_nothing_gives_the_features_of_every_prefix(model, tokens):
    whole, _ = sequence(model, tokens, START)
    stepped = walk(model, tokens, empty(START))
    np.testing.assert_allclose(stepped[real(START)], whole[real(START)], atol=2e-6)


@pytest.mark.parametrize("prefix", [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1])
def test_stepping_goes_on_where_a_sequence_ends(model, tokens, prefix):
    start = jnp.minimum(START, prefix - 1)
    whole, _ = sequence(model, tokens, start)
    first, cache = sequence(model, tokens[:, :prefix], start)
    rest = walk(model, tokens[:, prefix:], cache)
    seen = real(start)[:, :prefix]
    np.testing.assert_allclose(first[seen], whole[:, :prefix][seen], atol=2e-6)
    np.testing.assert_allclose(rest, whole[:, prefix:], atol=2e-6)


def test_padding_in_front_changes_nothing(model, tokens):
    padded, _ = sequence(model, tokens, jnp.full(ROWS, 4))
    bare, _ = sequence(model, tokens[:, 4:], jnp.zeros(ROWS, jnp.int32))
    np.testing.assert_allclose(padded[:, 4:], bare, atol=2e-6)


def test_tokens_before_the_start_cannot_matter(model, tokens):
    garbage = jnp.where(real(START)[..., None], tokens, 1e3)
    clean, _ = sequence(model, tokens, START)
    dirty, _ = sequence(model, garbage, START)
    np.testing.assert_array_equal(dirty[real(START)], clean[real(START)])


def test_later_tokens_cannot_matter(model, tokens):
    clean, _ = sequence(model, tokens, START)
    dirty, _ = sequence(model, tokens.at[:, 9:].set(1e3), START)
    np.testing.assert_array_equal(
        dirty[:, :9][real(START)[:, :9]], clean[:, :9][real(START)[:, :9]]
    )


@pytest.mark.parametrize("changed", [0, 2])
def test_each_layer_sees_exactly_one_window(model, tokens, changed):
    reach = LAYERS * (WINDOW - 1)
    start = jnp.zeros(ROWS, jnp.int32)
    clean, _ = sequence(model, tokens, start)
    dirty, _ = sequence(model, tokens.at[:, changed].add(1.0), start)
    same = np.all(np.asarray(clean == dirty), axis=(0, 2))
    np.testing.assert_array_equal(
        same, (np.arange(TOKENS) < changed) | (np.arange(TOKENS) > changed + reach)
    )


def test_windows_give_what_sequences_without_padding_give(model, tokens):
    features, _ = eqx.filter_jit(model.window)(tokens)
    plain, _ = sequence(model, tokens, jnp.zeros(ROWS, jnp.int32))
    np.testing.assert_allclose(features, plain, atol=2e-6)


@pytest.mark.parametrize(
    ("layers", "window", "count", "made"),
    [
        (1, 5, 2, {}),
        (2, 5, 1, {}),
        (2, 5, 3, {}),
        (3, 3, 1, {"rematerialise": True}),
        (4, 3, 2, {}),  # the blocks give 9, 7, 5 and 2 tokens
        (4, 3, 2, {"routed": 3}),
        (4, 9, 2, {}),  # the first blocks give all
    ],
)
def test_some_features_cost_less_and_are_the_same(tokens, layers, window, count, made):
    model = backbone(**{"routed": 0, "layers": layers, "window": window} | made)
    whole, _ = eqx.filter_jit(model.window)(tokens)
    last = TOKENS - 2 * count + 1
    later = eqx.filter_jit(lambda first: model.later(tokens, first, count))
    for shift in range(last + 1):
        first = (shift + 2 * jnp.arange(ROWS)) % (last + 1)
        places = first[:, None] + 2 * jnp.arange(count)[None]
        np.testing.assert_allclose(later(first), at_places(whole, places), atol=1e-5)


def test_blocks_give_only_what_those_after_them_look_back_on(model, tokens):
    first = jnp.full(ROWS, TOKENS - 1)
    products = lambda call: work(lambda: call(tokens)).flops
    every = products(lambda tokens: model.window(tokens))
    one = products(lambda tokens: model.later(tokens, first, 1))
    assert LAYERS == 2 and one < 0.5 * every


def test_rows_do_not_see_each_other(model, tokens):
    clean, _ = sequence(model, tokens, START)
    dirty, _ = sequence(model, tokens.at[1].set(7.0), START)
    for row in (0, 2):
        np.testing.assert_array_equal(dirty[row], clean[row])


def test_rotated_products_depend_on_distances_alone(keys):
    query, key = jax.random.normal(next(keys), (2, 6, HEADS, 8))
    place = jnp.arange(6)

    def products(shift):
        turned = rotate(query, place + shift), rotate(key, place + shift)
        return jnp.einsum("qhk,whk->hqw", *turned)

    np.testing.assert_allclose(products(100), products(0), atol=1e-4)
    assert not np.allclose(products(0), jnp.einsum("qhk,whk->hqw", query, key), atol=1e-2)


def test_turning_keeps_lengths_and_the_first_token(keys):
    x = jax.random.normal(next(keys), (6, HEADS, 8))
    turned = rotate(x, jnp.arange(6))
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(turned[0], x[0])


def test_a_narrow_backbone_keeps_narrow_keys_and_values_and_gives_float32(tokens):
    narrow = narrowed(backbone(3), "bfloat16")
    features, cache = sequence(narrow, tokens, START)
    stepped = walk(narrow, tokens[:, :2], cache)
    assert {x.dtype for x in jax.tree.leaves(cache.rings)} == {jnp.dtype(jnp.bfloat16)}
    assert features.dtype == stepped.dtype == jnp.float32


@pytest.mark.slow
def test_computing_blocks_anew_changes_no_gradient(model, tokens):
    starts = jnp.zeros(ROWS, jnp.int32)

    def pull(rematerialise):
        kept = Transformer(model.blocks, model.last, rematerialise)
        loss = lambda m: jnp.sum(jnp.sin(m.sequence(tokens, starts)[0]))
        params, rest = eqx.partition(kept, eqx.is_inexact_array)
        gradient = jax.jit(jax.grad(lambda params: loss(eqx.combine(params, rest))))
        return jax.tree.leaves(gradient(params)), str(gradient.trace(params).jaxpr)

    (kept, plain), (anew, traced) = pull(False), pull(True)
    assert traced.count("remat") == LAYERS > plain.count("remat")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), kept, anew)
