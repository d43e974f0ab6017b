"""SwiGLU experts over routed tokens: the same sums in three ways, of which the sizes decide.

No token is ever dropped, and the cost follows the routing; when all tokens go to one expert it is
that of one dense layer. Figures behind the choices: docs/performance.md.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DENSE_BELOW = 1 << 18  # multiply-adds of all experts for a token; computing all beats sorting them
FEW = 512  # tokens; training has more, a search usually fewer
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
    if len(x) < FEW and 3 * count * hidden * embed <= DENSE_BELOW:
        return dense(weights, x, chosen, share)
    if len(x) < FEW or jax.default_backend() != "cpu":
        return bucketed(weights, x, chosen, share)
    return tiled(weights, x, chosen, share)


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
    """Tokens in one bucket for each expert, of the smallest compiled size that loses none.

    Tokens stand in columns: a few of them times a large matrix is fastest that way round.
    """
    gate, up, out = weights
    count, (tokens, picks) = len(gate), chosen.shape
    owner = chosen.reshape(-1)
    load, rank = _ranked(owner, count)
    spread = jnp.repeat(x, picks, axis=0)

    def within(capacity: int) -> Float[Array, "token embed"]:
        bucket = jnp.zeros((count, capacity, x.shape[-1]), x.dtype)
        bucket = bucket.at[owner, rank].set(spread, mode="drop")
        column = lambda weight: jnp.einsum("ehd,ecd->ehc", weight, bucket)
        done = jnp.einsum("edh,ehc->edc", out, jax.nn.silu(column(gate)) * column(up))
        back = done.at[owner, :, rank].get(mode="fill", fill_value=0)
        return jnp.sum(back.reshape(tokens, picks, -1) * share[..., None], axis=1)

    sizes = capacities(tokens * picks, count)
    fits = jnp.sum(jnp.max(load) > jnp.array(sizes[:-1], jnp.int32))
    return jax.lax.switch(fits, [lambda size=size: within(size) for size in sizes])


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


def tiled(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Tokens sorted by expert, and then tile by tile: what a tile needs stays in a core's cache."""
    count, (tokens, picks) = len(weights[0]), chosen.shape
    owner = chosen.reshape(-1)
    side = tile_of(tokens * picks, count)
    load, rank = _ranked(owner, count)
    tiles = -(-load // side)
    start = side * (jnp.cumsum(tiles) - tiles).astype(jnp.int32)
    place = start[owner] + rank
    room = (tokens * picks // side + count) * side  # however they are spread
    laid = jnp.zeros((room, x.shape[-1]), x.dtype).at[place].set(jnp.repeat(x, picks, axis=0))
    done = _tiles(side, laid, start, tiles, weights)[place]
    return jnp.sum(done.reshape(tokens, picks, -1) * share[..., None], axis=1)


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
