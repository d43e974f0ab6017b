import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalezero.nets import apart, grouped, swiglu, tiles, turns
from scalezero.nets import experts as module
from scalezero.nets.experts import Experts, experts
from scalezero.nets.grouped import capacities
from scalezero.nets.linear import narrowed
from scalezero.nets.tiles import side_of
from scalezero.nets.turns import portions

EMBED, HIDDEN, COUNT, TOKENS = 8, 6, 4, 24
EVEN = np.arange(TOKENS) % COUNT
LOADS = {
    "balanced": EVEN,
    "uneven": np.where(np.arange(TOKENS) < 12, 0, EVEN),
    "all to one": np.zeros(TOKENS, int),
}


@functools.cache
def layer(kind: str, picks: int) -> Experts:
    """Experts whose router reads a token's first entries as the logits."""
    fresh = experts(EMBED, COUNT, HIDDEN, HIDDEN, picks, kind, key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.router.weight, fresh, jnp.eye(COUNT, EMBED))


def tokens(load) -> jax.Array:
    """Random tokens of which token i goes first to expert `load[i]`, then to the one after."""
    x = 0.3 * np.random.default_rng(0).normal(size=(TOKENS, EMBED))
    x[np.arange(TOKENS), load] += 4
    x[np.arange(TOKENS), (load + 1) % COUNT] += 2
    return jnp.asarray(x, jnp.float32)


WAYS = {
    "dense": grouped.dense,
    "bucketed": grouped.bucketed,
    "buckets alone": grouped.bucketed,
    "buckets of rows": grouped.bucketed,
    "turns": grouped.bucketed,
    "tiled": grouped.tiled,
    "wide tiles": grouped.tiled,
}


def patched(way: str, patch: pytest.MonkeyPatch) -> None:
    """Make the sizes that select between ways small enough for a few tokens to tell them apart."""
    patch.setattr(tiles, "SIDES", (8, 8) if way == "wide tiles" else (2, 2))
    patch.setattr(grouped, "WEIGHTS_ALONE", 2)
    if "buckets" in way:
        patch.setattr(grouped, "ROOMY", 99)
        patch.setattr(grouped, "IDLE", 99)
    if way == "turns":
        patch.setattr(grouped, "capacities", lambda pairs, _: (1, pairs))
    columns = {"buckets alone": TOKENS + 1, "buckets of rows": 0, "wide tiles": 8}
    patch.setattr(swiglu, "COLUMNS", columns.get(way, 20))


@eqx.filter_jit
def learn(layer, x, way: str):
    """The output, and the gradients of a loss with respect to parameters and tokens."""

    def loss(both):
        y, routing = both[0](both[1])
        return jnp.sum(jnp.sin(y)), (y, routing.chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "routed", WAYS[way])
        patched(way, patch)
        gradients, (y, chosen) = eqx.filter_grad(loss, has_aux=True)((layer, x))
    return y, chosen, gradients


def one_by_one(layer: Experts, x: jax.Array, load) -> jax.Array:
    """The definition: each token goes to its own experts, in a plain loop."""
    outputs = []
    for token, first in zip(x, load, strict=True):
        logits = layer.router(token)
        chosen = [(int(first) + i) % COUNT for i in range(layer.picks)]
        kept = logits[jnp.array(chosen)]
        weight = jax.nn.softmax(kept)
        if layer.kind == "trained":
            weight = jnp.exp(kept) / jnp.sum(jnp.exp(logits))
        y = layer.shared(token)
        for share, index in zip(weight, chosen, strict=True):
            one = jax.tree.map(lambda leaf, i=index: leaf[i], layer.routed)
            y = y + share * one(token)
        outputs.append(y)
    return jnp.stack(outputs)


def near(a, b) -> None:
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=2e-5, rtol=1e-4), a, b)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "dense"])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("kind", "picks"), [("trained", 1), ("trained", 2), ("paper", 2)])
def test_every_way_gives_the_same_and_learns_the_same(kind, picks, load, way):
    model, x = layer(kind, picks), tokens(LOADS[load])
    mine, chosen, pull = learn(model, x, way)
    dense, chosen_too, pull_too = learn(model, x, "dense")
    np.testing.assert_array_equal(chosen, chosen_too)
    np.testing.assert_array_equal(chosen[:, 0], LOADS[load])
    near(mine, dense)
    near(pull, pull_too)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("kind", "picks"), [("trained", 1), ("trained", 2), ("paper", 2)])
def test_every_way_gives_what_a_loop_over_tokens_gives(kind, picks, load, way):
    model, x = layer(kind, picks), tokens(LOADS[load])
    mine, _, _ = learn(model, x, way)
    near(mine, one_by_one(model, x, LOADS[load]))


@pytest.mark.parametrize("read", [TOKENS, TOKENS - 1])
@pytest.mark.parametrize("load", LOADS)
def test_few_tokens_of_large_experts_take_no_branch_on_an_accelerator(load, read, monkeypatch):
    monkeypatch.setattr(grouped.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(grouped, "SMALL", 0)
    monkeypatch.setattr(grouped, "READ", read)
    model, x = layer("trained", 2), tokens(LOADS[load])
    call = lambda x: model(x)[0]
    assert ("cond[" in str(jax.make_jaxpr(call)(x))) == (read < TOKENS)
    near(call(x), one_by_one(model, x, LOADS[load]))


@pytest.mark.parametrize(("chunk", "last"), [(32, 16), (4, 2)])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("kind", "picks"), [("trained", 1), ("trained", 2), ("paper", 2)])
def test_experts_apart_give_what_a_loop_over_tokens_gives(
    kind, picks, load, chunk, last, monkeypatch
):
    monkeypatch.setattr(apart, "CHUNK", chunk)
    monkeypatch.setattr(apart, "LAST", last)
    model, x = layer(kind, picks), tokens(LOADS[load])
    alone = model.apart()
    assert not alone.can_part
    mine, routing = eqx.filter_jit(lambda: alone(x))()
    near(mine, one_by_one(model, x, LOADS[load]))
    np.testing.assert_array_equal(routing.chosen[:, 0], LOADS[load])


@pytest.mark.parametrize("load", LOADS)
def test_narrow_experts_apart_give_the_same_but_for_rounding(load):
    model, x = narrowed(layer("trained", 2), "bfloat16"), tokens(LOADS[load])
    apart, stacked = (eqx.filter_jit(each)(x)[0] for each in (model.apart(), model))
    assert np.abs(stacked).max() > 1
    np.testing.assert_allclose(apart, stacked, atol=0.01)


@pytest.mark.parametrize(
    ("precision", "units", "count", "rows"),
    [
        ("bfloat16", "avx512", swiglu.ROWS, True),
        ("bfloat16", "avx512", swiglu.ROWS + 1, False),
        ("bfloat16", "amx", swiglu.ROWS, False),
        ("bfloat16", None, swiglu.ROWS, True),
        ("float32", "avx512", swiglu.ROWS, False),
    ],
)
def test_few_narrow_tokens_give_the_same_in_rows_and_in_columns(
    precision, units, count, rows, monkeypatch
):
    weights = narrowed(layer("trained", 1).routed, precision).matrices
    x = jax.random.normal(jax.random.key(1), (COUNT, count, EMBED))
    gate, up, out = (np.asarray(each, np.float32) for each in weights)
    gated, raised = (np.einsum("eoi,eti->eto", each, x) for each in (gate, up))
    expected = np.einsum("eoi,eti->eto", out, jax.nn.silu(gated) * raised)
    monkeypatch.setattr(swiglu, "units", lambda: units)
    monkeypatch.setattr(swiglu.jax, "default_backend", lambda: "cpu")
    asked = []
    summed = swiglu.summed
    noted = lambda axes, *pair: asked.append(axes) or summed(axes, *pair)
    monkeypatch.setattr(swiglu, "summed", noted)
    given = swiglu.swiglu(weights, x)
    assert ("eoi,eti->eto" in asked) == rows
    assert np.abs(given).max() > 0.1
    np.testing.assert_allclose(given, expected, atol=0.02)


def test_experts_without_tokens_cost_nothing_apart(monkeypatch):
    run = []
    monkeypatch.setattr(apart, "swiglu", lambda own, x: run.append(x.shape[1]) or x)
    with jax.disable_jit():
        layer("trained", 1).apart()(tokens(LOADS["uneven"] % 2))
    assert run == [32, 16]  # 18 tokens, and 6


def test_too_many_experts_stay_in_a_stack():
    many = experts(EMBED, module.MOST_APART + 1, 1, HIDDEN, 1, "trained", key=jax.random.key(0))
    assert many.apart() is many


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_learns_what_a_loop_over_tokens_learns(way):
    both = layer("trained", 2), tokens(LOADS["uneven"])
    loss = lambda both: jnp.sum(jnp.sin(one_by_one(*both, LOADS["uneven"])))
    _, _, pull = learn(*both, way)
    near(pull, eqx.filter_grad(loss)(both))


@pytest.mark.parametrize(
    "load", [np.arange(2048) % COUNT, np.zeros(2048, int)], ids=["even", "one"]
)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_narrow_experts_are_summed_in_float32(way, load):
    model = narrowed(layer("trained", 1).routed, "bfloat16")
    weights = model.gate.weight, model.up.weight, model.out.weight
    x = jax.random.normal(jax.random.key(1), (2048, EMBED))
    chosen, share = jnp.asarray(load[:, None], jnp.int32), jnp.ones((2048, 1))

    def pull(way, weights):
        loss = lambda weights, x: jnp.sum(way(weights, x, chosen, share))
        slopes, slope_x = jax.grad(loss, argnums=(0, 1))(weights, x)
        return *slopes, slope_x

    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    exact = pull(grouped.dense, wide(weights))
    with pytest.MonkeyPatch.context() as patch:
        patched(way, patch)
        narrow = pull(WAYS[way], weights)
    for mine, true in zip(wide(narrow), exact, strict=True):
        scale = np.abs(true).max()
        np.testing.assert_allclose(mine / scale, true / scale, atol=0.02)


@pytest.mark.parametrize("pairs", [1, 100, 512, 5120, 100_000])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_tiles_grow_with_the_tokens_and_few_places_are_empty(pairs, count):
    fewest, most = tiles.SIDES
    side = side_of(pairs, count)
    assert fewest <= side <= most
    assert side == fewest or side * count <= pairs / 4
    assert side == most or 2 * side * count > pairs / 4


@pytest.mark.parametrize("picks", [1, 2])
def test_the_loads_above_use_every_compiled_capacity(picks):
    sizes = capacities(TOKENS * picks, COUNT)
    fullest = [np.bincount(load).max() for load in LOADS.values()]
    if picks == 2:
        fullest = [
            np.bincount(np.concatenate([load, (load + 1) % COUNT])).max() for load in LOADS.values()
        ]
    needed = {min(size for size in sizes if size >= most) for most in fullest}
    # Two picks differ, so no expert gets more than one of a token's two.
    assert needed == {size for size in sizes if size / 2 < TOKENS}


@pytest.mark.parametrize("pairs", [1, 5, 24, 48, 64, 100, 1000, 1408, 100_000])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_compiled_sizes_rise_to_everything_and_waste_little(pairs, count):
    buckets, turn = capacities(pairs, count), portions(pairs, count)
    for sizes in (buckets, turn):
        assert list(sizes) == sorted(set(sizes))
        assert sizes[-1] == pairs
    assert buckets[0] >= pairs / count
    assert turn[0] <= max(turns.FEWEST, pairs / count)
    assert all(high <= 1.5 * low + 16 for low, high in itertools.pairwise(turn))


def test_a_trained_router_learns_and_the_papers_at_one_pick_does_not():
    x = tokens(EVEN)
    for way in WAYS:
        _, _, (trained, _) = learn(layer("trained", 1), x, way)
        _, _, (paper, _) = learn(layer("paper", 1), x, way)
        assert np.abs(trained.router.weight).max() > 1e-3
        assert not np.any(paper.router.weight)


def test_at_one_pick_the_papers_router_gives_full_weight():
    model, x = layer("paper", 1), tokens(EVEN)
    y, _, _ = learn(model, x, "bucketed")
    near(y, one_by_one(model, x, EVEN))


@pytest.mark.parametrize("way", WAYS)
def test_other_tokens_cannot_matter(way):
    model = layer("trained", 1)
    x = tokens(LOADS["balanced"])
    crowd = x.at[2:].set(tokens(LOADS["all to one"])[2:])  # another capacity
    alone, _, _ = learn(model, x, way)
    crowded, _, _ = learn(model, crowd, way)
    near(crowded[:2], alone[:2])
