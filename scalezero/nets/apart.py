"""Experts that stand apart, each matrix an array of its own: chunk by chunk, nothing is copied.

So they cost what the load asks for, however uneven, and only what has tokens is read. For searches:
compiled, it has no derivative. Figures are in docs/performance.md.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalezero.nets.swiglu import Apart, Own, by_expert, swiglu

CHUNK = 32  # tokens of a product; more gain little, and each size takes time to load
LAST = 16  # tokens of an expert's last product, where these are enough


def in_chunks(
    x: Float[Array, "pair embed"], owner: Int[Array, " pair"], weights: Apart
) -> Float[Array, "pair embed"]:
    """What its expert makes of each token."""
    at = by_expert(owner, len(weights.experts))
    lined, y = at.lined(x, CHUNK), jnp.zeros((len(x) + CHUNK, x.shape[-1]))
    for expert, own in enumerate(weights.experts):
        y = _through(own, lined, at.begin[expert], at.load[expert], y)
    return at.unlined(y)


def _through(
    own: Own,
    lined: Float[Array, "lined embed"],
    begin: Int[Array, ""],
    load: Int[Array, ""],
    y: Float[Array, "lined embed"],
) -> Float[Array, "lined embed"]:
    """`y` with what one expert makes of its tokens, `load` of them from `begin` on.

    What it makes of tokens of experts that come after is written over by these.
    """
    stack = jax.tree.map(lambda each: each[None], own)

    def product(size: int, first: Array, y: Array) -> Array:
        done = swiglu(stack, jax.lax.dynamic_slice_in_dim(lined, first, size)[None])
        return jax.lax.dynamic_update_slice_in_dim(y, done[0], first, 0)

    def chunk(index: Array | int, y: Array) -> Array:
        passed = CHUNK * index
        ways = (functools.partial(product, size) for size in (LAST, CHUNK))
        return jax.lax.cond(load - passed <= LAST, *ways, begin + passed, y)

    return jax.lax.fori_loop(0, -(-load // CHUNK), chunk, y)
