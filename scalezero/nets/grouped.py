"""SwiGLU experts over routed tokens: the same sums in four ways, of which the sizes decide.

No token is ever dropped, and the cost follows the routing; when all tokens go to one expert it is
that of one dense layer. Figures behind the choices: docs/performance.md.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SMALL = 1 << 18  # multiply-adds of all experts for a token; up to this, products take no time
FEW = 128  # tokens for which small experts are all computed, which beats sorting, on a CPU
FEW_ELSEWHERE = 512
MANY = 1_536  # tokens that no cache holds with what large experts make of them
BUCKETS = 2  # sizes to compile on a CPU, where worse loads go to tiles
TILES = (32, 256)  # fewest and most tokens of a tile

type Weights = tuple[
    Float[Array, "expert hidden embed"],
    Float[Array, "expert hidden embed"],
    Float[Array, "expert embed hidden"],
]  # of gate, up and out


def routed(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Σ over picks of share · out(silu(gate x) · up x), by whichever way is cheapest at this size.

    Args:
        weights: Of every expert's gate, up and out.
        x: Tokens.
        chosen: The experts that each token is sent to.
        share: What each of these counts.
    """
    count, hidden, embed = weights[0].shape
    small, backend = 3 * count * hidden * embed <= SMALL, jax.default_backend()
    if small and len(x) < (FEW if backend == "cpu" else FEW_ELSEWHERE):
        way = dense
    elif backend != "cpu":
        way = bucketed
    else:
        way = tiled if small or len(x) >= MANY else adaptive
    return way(weights, x, chosen, share)


def dense(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Every expert sees every token; unchosen ones weigh zero."""
    gate, up, out = weights
    each = jax.nn.one_hot(chosen, len(gate), dtype=x.dtype) * share[..., None]
    # The share may be applied before `out`, which is linear: one product sums over experts.
    hidden = jax.nn.silu(jnp.einsum("ehd,nd->neh", gate, x)) * jnp.einsum("ehd,nd->neh", up, x)
    return jnp.einsum("edh,neh->nd", out, hidden * jnp.sum(each, axis=1)[..., None])


def bucketed(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Tokens in one bucket for each expert, of the smallest compiled size that loses none."""
    owner, count = chosen.reshape(-1), len(weights[0])
    load, rank = _ranked(owner, count)
    spread, sizes = jnp.repeat(x, chosen.shape[1], axis=0), capacities(len(owner), count)
    fits = jnp.sum(jnp.max(load) > jnp.array(sizes[:-1], jnp.int32))
    ways = [lambda size=size: _buckets(size, spread, owner, rank, weights) for size in sizes]
    return _summed(jax.lax.switch(fits, ways), share)


def adaptive(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Small buckets where the load is even enough for them, else tiles; gradients by tiles."""
    spread = jnp.repeat(x, chosen.shape[1], axis=0)
    return _summed(_adapted(spread, chosen.reshape(-1), weights), share)


def tiled(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Tokens sorted by expert, and then tile by tile: what a tile needs stays in a core's cache."""
    spread = jnp.repeat(x, chosen.shape[1], axis=0)
    return _summed(_in_tiles(spread, chosen.reshape(-1), weights), share)


def capacities(pairs: int, count: int) -> tuple[int, ...]:
    """Bucket sizes to compile: from an even load upwards in doublings, up to everything.

    Whole vectors of 16: on a CPU, 20 columns take as long as 40, and 16 half of that.
    """
    even = -(-5 * pairs // (4 * count))
    sizes, size = [], 1 << (even - 1).bit_length() if even < 16 else -(-even // 16) * 16
    while size < pairs:
        sizes.append(size)
        size *= 2
    return (*sizes, pairs)


def tile_of(pairs: int, count: int) -> int:
    """Tokens of a tile: a power of two, so that few tiles are nearly empty."""
    fewest, most = TILES
    side = fewest
    while side < most and 8 * side * count <= pairs:
        side *= 2
    return side


def _ranked(
    owner: Int[Array, " pair"], count: int
) -> tuple[Int[Array, " expert"], Int[Array, " pair"]]:
    """How many tokens each expert has, and the place of each token among its expert's."""
    load = jnp.sum(jax.nn.one_hot(owner, count, dtype=jnp.int32), axis=0)
    order = jnp.argsort(owner, stable=True)
    begin = (jnp.cumsum(load) - load).astype(jnp.int32)
    sorted_rank = jnp.arange(len(owner), dtype=jnp.int32) - begin[owner[order]]
    return load, jnp.zeros(len(owner), jnp.int32).at[order].set(sorted_rank)


def _summed(
    done: Float[Array, "pair embed"], share: Float[Array, "token pick"]
) -> Float[Array, "token embed"]:
    """What each token is given by its experts together."""
    return jnp.sum(done.reshape(*share.shape, -1) * share[..., None], axis=1)


def _buckets(
    capacity: int,
    x: Float[Array, "pair embed"],
    owner: Int[Array, " pair"],
    rank: Int[Array, " pair"],
    weights: Weights,
) -> Float[Array, "pair embed"]:
    """Tokens stand in columns: a few of them times a large matrix is fastest that way round."""
    gate, up, out = weights
    bucket = jnp.zeros((len(gate), capacity, x.shape[-1]), x.dtype)
    bucket = bucket.at[owner, rank].set(x, mode="drop")
    column = lambda weight: jnp.einsum("ehd,ecd->ehc", weight, bucket)
    done = jnp.einsum("edh,ehc->edc", out, jax.nn.silu(column(gate)) * column(up))
    return done.at[owner, :, rank].get(mode="fill", fill_value=0)


class _Laid(NamedTuple):
    """Where tokens stand that are sorted by expert, in whole tiles."""

    side: int  # tokens of a tile
    room: int  # places, however the tokens are spread
    start: Int[Array, " expert"]
    tiles: Int[Array, " expert"]
    place: Int[Array, " pair"]

    def lay(self, x: Float[Array, "pair embed"]) -> Float[Array, "laid embed"]:
        """The tokens in their places, zeros elsewhere."""
        return jnp.zeros((self.room, x.shape[-1]), x.dtype).at[self.place].set(x)


def _laid(owner: Int[Array, " pair"], count: int) -> _Laid:
    side = tile_of(len(owner), count)
    load, rank = _ranked(owner, count)
    tiles = -(-load // side)
    start = side * (jnp.cumsum(tiles) - tiles).astype(jnp.int32)
    return _Laid(side, (len(owner) // side + count) * side, start, tiles, start[owner] + rank)


def _in_tiles(
    x: Float[Array, "pair embed"], owner: Int[Array, " pair"], weights: Weights
) -> Float[Array, "pair embed"]:
    at = _laid(owner, len(weights[0]))
    return _tiles(at.side, at.lay(x), at.start, at.tiles, weights)[at.place]


def _swiglu(
    x: Float[Array, "tile embed"],
    gate: Float[Array, "hidden embed"],
    up: Float[Array, "hidden embed"],
    out: Float[Array, "embed hidden"],
) -> Float[Array, "tile embed"]:
    return (jax.nn.silu(x @ gate.T) * (x @ up.T)) @ out.T


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiles(
    side: int,
    x: Float[Array, "laid embed"],
    start: Int[Array, " expert"],
    tiles: Int[Array, " expert"],
    weights: Weights,
) -> Float[Array, "laid embed"]:
    """What each expert makes of its tiles. Derived by hand: loops of unknown length have no vjp."""

    def expert(y: Array, each: tuple[Array, ...]) -> tuple[Array, None]:
        begin, count, *own = each

        def tile(index: Array, y: Array) -> Array:
            at = begin + side * index
            done = _swiglu(jax.lax.dynamic_slice_in_dim(x, at, side), *own)
            return jax.lax.dynamic_update_slice_in_dim(y, done, at, 0)

        return jax.lax.fori_loop(0, count, tile, y), None

    return jax.lax.scan(expert, jnp.zeros_like(x), (start, tiles, *weights))[0]


def _tiles_forward(side, x, start, tiles, weights):
    return _tiles(side, x, start, tiles, weights), (x, start, tiles, weights)


def _tiles_backward(side, kept, slope):
    x, start, tiles, weights = kept

    def expert(slope_x: Array, each: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        begin, count, *own = each

        def tile(index: Array, slopes: tuple[Array, tuple[Array, ...]]):
            slope_x, slope_own = slopes
            at = begin + side * index
            given = jax.lax.dynamic_slice_in_dim(x, at, side)
            _, pull = jax.vjp(_swiglu, given, *own)  # what lies between is computed once more
            back, *more = pull(jax.lax.dynamic_slice_in_dim(slope, at, side))
            slope_x = jax.lax.dynamic_update_slice_in_dim(slope_x, back, at, 0)
            return slope_x, tuple(
                a + b.astype(a.dtype) for a, b in zip(slope_own, more, strict=True)
            )

        nothing = tuple(jnp.zeros(weight.shape, jnp.float32) for weight in own)
        slope_x, slope_own = jax.lax.fori_loop(0, count, tile, (slope_x, nothing))
        return slope_x, tuple(s.astype(w.dtype) for s, w in zip(slope_own, own, strict=True))

    slope_x, slope_own = jax.lax.scan(expert, jnp.zeros_like(x), (start, tiles, *weights))
    return slope_x, None, None, slope_own


_tiles.defvjp(_tiles_forward, _tiles_backward)


@jax.custom_vjp
def _adapted(
    x: Float[Array, "pair embed"], owner: Int[Array, " pair"], weights: Weights
) -> Float[Array, "pair embed"]:
    """What its expert makes of each token."""
    load, rank = _ranked(owner, len(weights[0]))
    sizes = capacities(len(owner), len(weights[0]))[:BUCKETS]
    fits = jnp.sum(jnp.max(load) > jnp.array(sizes, jnp.int32))
    ways = [lambda size=size: _buckets(size, x, owner, rank, weights) for size in sizes]
    return jax.lax.switch(fits, [*ways, lambda: _in_tiles(x, owner, weights)])


def _adapted_forward(x, owner, weights):
    return _adapted(x, owner, weights), (x, owner, weights)


def _adapted_backward(kept, slope):
    x, owner, weights = kept
    at = _laid(owner, len(weights[0]))
    laid = at.lay(x), at.start, at.tiles, weights
    slope_x, _, _, slope_weights = _tiles_backward(at.side, laid, at.lay(slope))
    return slope_x[at.place], None, slope_weights


_adapted.defvjp(_adapted_forward, _adapted_backward)
