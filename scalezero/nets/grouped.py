"""SwiGLU experts over routed tokens: the same sums in several ways, chosen by layout and sizes.

No token is ever dropped, and the cost follows the routing. Figures behind the choices:
docs/performance.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalezero.nets.apart import in_chunks
from scalezero.nets.swiglu import Apart, Sorted, Weights, by_expert, slopes, summed, swiglu
from scalezero.nets.tiles import in_tiles
from scalezero.nets.turns import in_turns, in_turns_backward

SMALL = 1 << 18  # multiply-adds of all experts for a token; up to this, products take no time
FEW = 128  # fewer tokens are put through all small experts, which beats sorting, on a CPU
FEW_ELSEWHERE = 512  # … up to so many on an accelerator, which is a guess
READ = 128  # tokens up to which an accelerator takes longer to read weights than to multiply by all
MANY = 1_536  # tokens that no cache holds with what experts make of them
CACHED = 1 << 18  # multiply-adds of one narrow expert for a token; up to this, tiles pay for it too
ROOMY = 1.5  # times an even load that a bucket holds at most on a CPU; worse loads take turns
IDLE = 4  # experts for each one with tokens, from which on a CPU only the latter are read, in turns
WEIGHTS_ALONE = 64  # tokens of a bucket up to which only the reading of weights counts


def routed(
    weights: Weights | Apart,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Σ over picks of share · out(silu(gate x) · up x), by whichever way is cheapest at this size.

    Args:
        weights: Of every expert's gate, up and out. For experts that stand apart there is one way.
        x: Tokens.
        chosen: The experts that each token is sent to.
        share: What each of these counts.
    """
    if isinstance(weights, Apart):
        return _by_pair(in_chunks, weights, x, chosen, share)
    count, hidden, embed = weights[0].shape
    small = 3 * count * hidden * embed <= SMALL
    tiles = weights[0].dtype == jnp.float32 or 3 * hidden * embed <= CACHED
    if jax.default_backend() != "cpu":
        way = dense if len(x) <= (FEW_ELSEWHERE if small else READ) else bucketed
    elif small and len(x) < FEW:
        way = dense
    elif small or (tiles and len(x) >= MANY):
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
    """Every expert sees every token; unchosen ones weigh zero.

    One product for each expert: summed over experts too, XLA copies `out` first, on a GPU.
    """
    gate, up, out = weights
    each = jnp.sum(jax.nn.one_hot(chosen, len(gate)) * share[..., None], axis=1)
    hidden = jax.nn.silu(summed("ehd,nd->neh", gate, x)) * summed("ehd,nd->neh", up, x)
    return jnp.sum(summed("edh,neh->end", out, hidden) * each.T[..., None], axis=0)


def bucketed(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Tokens in one bucket for each expert, of the smallest compiled size that loses none.

    On a CPU experts take turns instead where loads are too uneven for the smallest sizes.
    """
    return _by_pair(_in_buckets, weights, x, chosen, share)


def tiled(
    weights: Weights,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Tokens sorted by expert, and then tile by tile."""
    return _by_pair(in_tiles, weights, x, chosen, share)


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


def _by_pair[Stored](
    through: Callable[[Array, Array, Stored], Array],
    weights: Stored,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """What each token is given by its experts together; `through` takes pairs and their owners."""
    spread = jnp.repeat(x, chosen.shape[1], axis=0)
    done = through(spread, chosen.reshape(-1), weights)
    return jnp.sum(done.reshape(*share.shape, done.shape[-1]) * share[..., None], axis=1)


class _Buckets(NamedTuple):
    """Where tokens stand that are put into one bucket for each expert."""

    capacity: int  # tokens of a bucket
    owner: Int[Array, " pair"]
    rank: Int[Array, " pair"]  # place in the bucket

    def fill(
        self, x: Float[Array, "pair embed"], count: int
    ) -> Float[Array, "expert bucket embed"]:
        """The buckets of `count` experts; zeros where they have room."""
        room = jnp.zeros((count, self.capacity, x.shape[-1]), x.dtype)
        return room.at[self.owner, self.rank].set(x, mode="drop")

    def forward(
        self, weights: Weights, x: Float[Array, "pair embed"]
    ) -> Float[Array, "pair embed"]:
        """What its expert makes of each token."""
        gate, _, _ = weights
        return self._taken(swiglu(weights, self.fill(x.astype(gate.dtype), len(gate))))

    def backward(
        self, weights: Weights, x: Float[Array, "pair embed"], slope: Float[Array, "pair embed"]
    ) -> tuple[Float[Array, "pair embed"], Weights]:
        """The derivatives of `forward` by tokens and weights."""
        fill = lambda each: self.fill(each.astype(weights[0].dtype), len(weights[0]))
        by_bucket, by_weights = slopes(weights, fill(x), fill(slope))
        return self._taken(by_bucket).astype(x.dtype), by_weights

    def _taken(self, y: Float[Array, "expert bucket embed"]) -> Float[Array, "pair embed"]:
        return y.at[self.owner, self.rank].get(mode="fill", fill_value=0)


def _by_load(
    owner: Int[Array, " pair"],
    count: int,
    bucket: Callable[[_Buckets], Any],
    turns: Callable[[Sorted], Any],
) -> Any:
    """`bucket` with buckets of the smallest size that holds the load.

    On a CPU loads that need more than `ROOMY` times an even one are left to `turns`, and those that
    leave nearly all experts idle.
    """
    at = by_expert(owner, count)
    rank = at.rank(owner)
    sizes = capacities(len(owner), count)
    needed = lambda sizes: jnp.sum(jnp.max(at.load) > jnp.array(sizes, jnp.int32))
    buckets = lambda sizes: [
        lambda size=size: bucket(_Buckets(size, owner, rank)) for size in sizes
    ]
    if jax.default_backend() != "cpu":
        return jax.lax.switch(needed(sizes[:-1]), buckets(sizes))
    most = max(sizes[0], WEIGHTS_ALONE, ROOMY * len(owner) // count)
    sizes = tuple(size for size in sizes if size <= most)
    if sizes[-1] == len(owner) and count < IDLE:
        return jax.lax.switch(needed(sizes[:-1]), buckets(sizes))
    idle = IDLE * jnp.sum(at.load > 0) <= count
    way = jnp.where(idle, len(sizes), needed(sizes))
    return jax.lax.switch(way, [*buckets(sizes), lambda: turns(at)])


@jax.custom_vjp
def _in_buckets(
    x: Float[Array, "pair embed"], owner: Int[Array, " pair"], weights: Weights
) -> Float[Array, "pair embed"]:
    """What its expert makes of each token. Derived by hand: else all branches would be kept."""
    return _by_load(
        owner,
        len(weights[0]),
        lambda buckets: buckets.forward(weights, x),
        lambda at: in_turns(x, at, weights),
    )


def _in_buckets_forward(x, owner, weights):
    return _in_buckets(x, owner, weights), (x, owner, weights)


def _in_buckets_backward(kept, slope):
    x, owner, weights = kept
    slope_x, slope_weights = _by_load(
        owner,
        len(weights[0]),
        lambda buckets: buckets.backward(weights, x, slope),
        lambda at: in_turns_backward(x, at, weights, slope),
    )
    return slope_x, None, slope_weights


_in_buckets.defvjp(_in_buckets_forward, _in_buckets_backward)
