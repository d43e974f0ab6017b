"""Experts in turn, each with all of its tokens in one product of about as many.

The weights of an expert are copied when it has tokens, and never otherwise: so it costs what the
load asks for, however uneven. Figures are in docs/performance.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalezero.nets.swiglu import Own, Sorted, Weights, slopes, swiglu

FEWEST = 16  # tokens of a product; fewer take as long


def portions(pairs: int, count: int) -> tuple[int, ...]:
    """Tokens of a product to compile: from half of an even load in steps of a half to everything.

    Whole vectors of 16.
    """
    size = max(FEWEST, pairs // (2 * count))
    sizes: list[int] = []
    while size < pairs:
        sizes.append(-(-size // 16) * 16)
        size = 3 * sizes[-1] // 2
    return (*(each for each in sizes if each < pairs), pairs)


def in_turns(
    x: Float[Array, "pair embed"], at: Sorted, weights: Weights
) -> Float[Array, "pair embed"]:
    """What its expert makes of each token."""
    lined = at.lined(x.astype(weights[0].dtype), len(x))

    def turn(expert: Array, size: int, y: Array) -> tuple[Array, None]:
        begin = at.begin[expert]
        own = _only(weights, expert)
        done = swiglu(own, jax.lax.dynamic_slice_in_dim(lined, begin, size)[None])
        # What this makes of tokens of experts that come after is written over by these.
        return jax.lax.dynamic_update_slice_in_dim(y, done[0], begin, 0), None

    y, _ = _each(at, turn, lambda: None, jnp.zeros(lined.shape, jnp.float32))
    return at.unlined(y)


def in_turns_backward(
    x: Float[Array, "pair embed"],
    at: Sorted,
    weights: Weights,
    slope: Float[Array, "pair embed"],
) -> tuple[Float[Array, "pair embed"], Weights]:
    """The derivatives of `in_turns` by tokens and weights."""
    lined, lined_slope = (at.lined(y.astype(weights[0].dtype), len(x)) for y in (x, slope))

    def turn(expert: Array, size: int, y: Array) -> tuple[Array, Own]:
        begin = at.begin[expert]
        own = (jnp.arange(size) < at.load[expert])[:, None]
        part = lambda whole: jnp.where(own, jax.lax.dynamic_slice_in_dim(whole, begin, size), 0)
        back, more = slopes(_only(weights, expert), part(lined)[None], part(lined_slope)[None])
        y = jax.lax.dynamic_update_slice_in_dim(y, back[0], begin, 0)
        return y, jax.tree.map(lambda each: each[0], more)

    idle = lambda: jax.tree.map(lambda weight: jnp.zeros_like(weight[0]), weights)
    y, by_weights = _each(at, turn, idle, jnp.zeros(lined.shape, jnp.float32))
    return at.unlined(y).astype(x.dtype), by_weights


def _each[Found](
    at: Sorted,
    turn: Callable[[Array, int, Array], tuple[Array, Found]],
    idle: Callable[[], Found],
    y: Float[Array, "lined embed"],
) -> tuple[Float[Array, "lined embed"], Found]:
    """`turn(expert, size, y)` for each expert, of the size that its load asks for, in order.

    An expert without tokens leaves `y` as it is and gives `idle()`.
    """
    sizes = portions(len(at.order), len(at.load))
    bounds = jnp.array([0, *sizes[:-1]], jnp.int32)

    def expert(y: Array, index: Array) -> tuple[Array, Found]:
        ways = [lambda y: (y, idle())]
        ways += [lambda y, size=size: turn(index, size, y) for size in sizes]
        return jax.lax.switch(jnp.sum(at.load[index] > bounds), ways, y)

    return jax.lax.scan(expert, y, jnp.arange(len(at.load)))


def _only(weights: Weights, expert: Int[Array, ""]) -> Own:
    """A stack of one expert."""
    return jax.tree.map(lambda each: jax.lax.dynamic_slice_in_dim(each, expert, 1), weights)
