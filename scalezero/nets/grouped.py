"""SwiGLU experts over routed tokens: the same sums in three ways, of which the sizes decide.

No token is ever dropped, and the cost follows the routing; when all tokens go to one expert it is
that of one dense layer. Products take operands of the weights' type and give float32, and so is
all that stands between them. Figures behind the choices: docs/performance.md.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalezero.nets.products import outer, product

SMALL = 1 << 18  # multiply-adds of all experts for a token; up to this, products take no time
FEW = 128  # tokens for which small experts are all computed, which beats sorting, on a CPU
FEW_ELSEWHERE = 512
MANY = 1_536  # tokens that no cache holds with what experts make of them
CACHED = 1 << 18  # multiply-adds of one narrow expert for a token; up to this, tiles pay for it too
ROOMY = 3  # times an even load that a bucket holds at most on a CPU; worse loads go to tiles
WEIGHTS_ALONE = 64  # tokens of a bucket up to which only the reading of weights counts
COLUMNS = 128  # tokens of a bucket that are fewer than these stand in columns
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
    tiles = weights[0].dtype == jnp.float32 or 3 * hidden * embed <= CACHED
    if small and len(x) < (FEW if backend == "cpu" else FEW_ELSEWHERE):
        way = dense
    elif backend == "cpu" and (small or (tiles and len(x) >= MANY)):
        way = tiled
    else:
        way = bucketed
    return way(weights, x, chosen, share)


def dense(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Every expert sees every token; unchosen ones weigh zero."""
    gate, up, out = weights
    each = jax.nn.one_hot(chosen, len(gate)) * share[..., None]
    # The share may be applied before `out`, which is linear: one product sums over experts.
    hidden = jax.nn.silu(_product("ehd,nd->neh", gate, x)) * _product("ehd,nd->neh", up, x)
    return _product("edh,neh->nd", out, hidden * jnp.sum(each, axis=1)[..., None])


def bucketed(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Tokens in one bucket for each expert, of the smallest compiled size that loses none.

    On a CPU loads too uneven for the smallest sizes go through tiles instead.
    """
    spread = jnp.repeat(x, chosen.shape[1], axis=0)
    return _summed(_in_buckets(spread, chosen.reshape(-1), weights), share)


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


def _product(axes: str, weight: Array, x: Array) -> Float[Array, "..."]:
    """An `einsum` whose second operand follows the first one's type, with sums in float32."""
    return jnp.einsum(axes, weight, x.astype(weight.dtype), preferred_element_type=jnp.float32)


def _summed(
    done: Float[Array, "pair embed"], share: Float[Array, "token pick"]
) -> Float[Array, "token embed"]:
    """What each token is given by its experts together."""
    return jnp.sum(done.reshape(*share.shape, -1) * share[..., None], axis=1)


def _filled(
    capacity: int,
    x: Float[Array, "pair embed"],
    owner: Int[Array, " pair"],
    rank: Int[Array, " pair"],
    gate: Float[Array, "expert hidden embed"],
) -> Float[Array, "expert bucket embed"]:
    """The buckets of the experts that `gate` is of, in its type; zeros where they have room."""
    room = jnp.zeros((len(gate), capacity, x.shape[-1]), gate.dtype)
    return room.at[owner, rank].set(x.astype(gate.dtype), mode="drop")


def _buckets(
    capacity: int,
    x: Float[Array, "pair embed"],
    owner: Int[Array, " pair"],
    rank: Int[Array, " pair"],
    weights: Weights,
) -> Float[Array, "pair embed"]:
    """Few tokens stand in columns: times a large matrix they are fastest that way round."""
    gate, up, out = weights
    bucket = _filled(capacity, x, owner, rank, gate)
    if capacity < COLUMNS:
        column = lambda weight: _product("ehd,ecd->ehc", weight, bucket)
        done = _product("edh,ehc->edc", out, jax.nn.silu(column(gate)) * column(up))
        return done.at[owner, :, rank].get(mode="fill", fill_value=0)
    row = lambda weight: _product("ehd,ecd->ech", weight, bucket)
    done = _product("edh,ech->ecd", out, jax.nn.silu(row(gate)) * row(up))
    return done.at[owner, rank].get(mode="fill", fill_value=0)


def _buckets_backward(
    capacity: int,
    x: Float[Array, "pair embed"],
    owner: Int[Array, " pair"],
    rank: Int[Array, " pair"],
    weights: Weights,
    slope: Float[Array, "pair embed"],
) -> tuple[Float[Array, "pair embed"], Weights]:
    """The derivatives of `_buckets` by tokens and weights; what lies between is computed anew."""
    gate, up, out = weights
    bucket = _filled(capacity, x, owner, rank, gate)
    back = _filled(capacity, slope, owner, rank, gate)
    row = lambda weight: _product("ehd,ecd->ech", weight, bucket)
    inner, factor = row(gate), row(up)
    active, pull = jax.vjp(jax.nn.silu, inner)
    hidden_slope = _product("edh,ecd->ech", out, back)
    (gate_slope,) = pull(hidden_slope * factor)
    up_slope = hidden_slope * active
    slope_x = _product("ehd,ech->ecd", gate, gate_slope) + _product("ehd,ech->ecd", up, up_slope)
    slopes = (
        outer(gate_slope.astype(gate.dtype), bucket),
        outer(up_slope.astype(gate.dtype), bucket),
        outer(back, (active * factor).astype(gate.dtype)),
    )
    return slope_x.at[owner, rank].get(mode="fill", fill_value=0).astype(x.dtype), slopes


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
    return product(out, jax.nn.silu(product(gate, x)) * product(up, x))


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

    nothing = jnp.zeros(x.shape, jnp.float32)
    return jax.lax.scan(expert, nothing, (start, tiles, *weights))[0]


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


def _by_load(
    owner: Int[Array, " pair"], count: int, bucket: Callable[..., Any], tiles: Callable[[], Any]
) -> Any:
    """`bucket(capacity, rank)` of the smallest size that holds the load.

    On a CPU loads that need more than `ROOMY` times an even one are left to `tiles()`.
    """
    load, rank = _ranked(owner, count)
    sizes = capacities(len(owner), count)
    if jax.default_backend() == "cpu":
        most = max(WEIGHTS_ALONE, ROOMY * len(owner) // count)
        sizes = tuple(size for size in sizes if size <= most)
    ways = [lambda size=size: bucket(size, rank) for size in sizes]
    ways += [] if sizes[-1] == len(owner) else [tiles]
    bounds = jnp.array(sizes[: len(ways) - 1], jnp.int32)
    return jax.lax.switch(jnp.sum(jnp.max(load) > bounds), ways)


@jax.custom_vjp
def _in_buckets(
    x: Float[Array, "pair embed"], owner: Int[Array, " pair"], weights: Weights
) -> Float[Array, "pair embed"]:
    """What its expert makes of each token. Derived by hand: else all branches would be kept."""
    return _by_load(
        owner,
        len(weights[0]),
        lambda size, rank: _buckets(size, x, owner, rank, weights),
        lambda: _in_tiles(x, owner, weights),
    )


def _in_buckets_forward(x, owner, weights):
    return _in_buckets(x, owner, weights), (x, owner, weights)


def _in_buckets_backward(kept, slope):
    x, owner, weights = kept

    def tiles():
        at = _laid(owner, len(weights[0]))
        laid = at.lay(x), at.start, at.tiles, weights
        slope_x, _, _, slope_weights = _tiles_backward(at.side, laid, at.lay(slope))
        return slope_x[at.place], slope_weights

    bucket = lambda size, rank: _buckets_backward(size, x, owner, rank, weights, slope)
    slope_x, slope_weights = _by_load(owner, len(weights[0]), bucket, tiles)
    return slope_x, None, slope_weights


_in_buckets.defvjp(_in_buckets_forward, _in_buckets_backward)
