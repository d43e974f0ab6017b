"""Experts tile by tile: what a tile of sorted tokens needs stays in a core's cache.

For many tokens and weights that are small or wide; figures are in docs/performance.md.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalezero.nets.swiglu import Own, Weights, by_expert, slopes, swiglu

SIDES = (32, 256)  # fewest and most tokens of a tile


def side_of(pairs: int, count: int) -> int:
    """Tokens of a tile: a power of two, so that few tiles are nearly empty."""
    side, most = SIDES
    while side < most and 8 * side * count <= pairs:
        side *= 2
    return side


def in_tiles(
    x: Float[Array, "pair embed"], owner: Int[Array, " pair"], weights: Weights
) -> Float[Array, "pair embed"]:
    """What its expert makes of each token."""
    at = _laid(owner, len(weights[0]))
    return _tiles(at.side, at.lay(x), at.start, at.tiles, weights)[at.place]


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
    side = side_of(len(owner), count)
    at = by_expert(owner, count)
    tiles = -(-at.load // side)
    start = side * (jnp.cumsum(tiles) - tiles).astype(jnp.int32)
    room = (len(owner) // side + count) * side
    return _Laid(side, room, start, tiles, start[owner] + at.rank(owner))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiles(
    side: int,
    x: Float[Array, "laid embed"],
    start: Int[Array, " expert"],
    tiles: Int[Array, " expert"],
    weights: Weights,
) -> Float[Array, "laid embed"]:
    """What each expert makes of its tiles. Derived by hand: loops of unknown length have no vjp."""

    def expert(y: Array, each: tuple[Array, Array, Own]) -> tuple[Array, None]:
        begin, count, own = each

        def tile(index: Array, y: Array) -> Array:
            at = begin + side * index
            done = swiglu(own, jax.lax.dynamic_slice_in_dim(x, at, side)[None])
            return jax.lax.dynamic_update_slice_in_dim(y, done[0], at, 0)

        return jax.lax.fori_loop(0, count, tile, y), None

    nothing = jnp.zeros(x.shape, jnp.float32)
    return jax.lax.scan(expert, nothing, (start, tiles, _single(weights)))[0]


def _tiles_forward(side, x, start, tiles, weights):
    return _tiles(side, x, start, tiles, weights), (x, start, tiles, weights)


def _tiles_backward(side, kept, slope):
    x, start, tiles, weights = kept

    def expert(slope_x: Array, each: tuple[Array, Array, Own]) -> tuple[Array, tuple[Array, ...]]:
        begin, count, own = each

        def tile(index: Array, found: tuple[Array, tuple[Array, ...]]):
            slope_x, slope_own = found
            at = begin + side * index
            part = lambda whole: jax.lax.dynamic_slice_in_dim(whole, at, side)[None]
            back, more = slopes(own, part(x), part(slope))
            slope_x = jax.lax.dynamic_update_slice_in_dim(slope_x, back[0], at, 0)
            return slope_x, tuple(
                a + b.astype(a.dtype) for a, b in zip(slope_own, more, strict=True)
            )

        nothing = tuple(jnp.zeros(weight.shape, jnp.float32) for weight in own)
        slope_x, slope_own = jax.lax.fori_loop(0, count, tile, (slope_x, nothing))
        return slope_x, tuple(s.astype(w.dtype) for s, w in zip(slope_own, own, strict=True))

    nothing = jnp.zeros(x.shape, jnp.float32)
    slope_x, by_weights = jax.lax.scan(expert, nothing, (start, tiles, _single(weights)))
    return slope_x.astype(x.dtype), None, None, tuple(each[:, 0] for each in by_weights)


_tiles.defvjp(_tiles_forward, _tiles_backward)


def _single(weights: Weights) -> Own:
    """The weights of each expert as those of a stack of one."""
    return jax.tree.map(lambda weight: weight[:, None], weights)
