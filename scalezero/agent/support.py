"""Scalars as distributions: the squashing h, its inverse, and two-hot coding.

Sources: MuZero, Appendix F (arXiv:1911.08265); h from arXiv:1805.11593.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 0.001


def squash(x: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """h(x) = sign(x)(√(|x| + 1) - 1) + εx: large values take less room."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + EPSILON * x


def unsquash(y: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """h⁻¹, so that `unsquash(squash(x)) = x`."""
    reach = jnp.abs(y) + 1 + EPSILON
    # √(|x| + 1) is (√(1 + 4ε reach) - 1) / 2ε, written so that nothing cancels near zero.
    root = 2 * reach / (1 + jnp.sqrt(1 + 4 * EPSILON * reach))
    return jnp.sign(y) * (jnp.square(root) - 1)


def two_hot(
    value: Float[Array, "*axes"], support: Float[Array, " bin"]
) -> Float[Array, "*axes bin"]:
    """The distribution over `support` whose mean is `value`.

    Mass sits on the two neighbouring bins, in proportion to nearness. Values beyond
    the ends of `support` are clipped to them.

    Args:
        value: What to encode, in the units of `support` (so: already through `squash`).
        support: Bin centres, evenly spaced and increasing.
    """
    step = support[1] - support[0]
    place = (jnp.clip(value, support[0], support[-1]) - support[0]) / step
    bins = jnp.arange(len(support), dtype=place.dtype)
    distance = jnp.abs(place[..., None] - behind(bins, place.ndim + 1))
    return jnp.maximum(1 - distance, 0)


def cross_entropy(
    logits: Float[Array, "*axes bin"], target: Float[Array, "*axes bin"]
) -> Float[Array, "*axes"]:
    """Nats needed to code `target` with the distribution `logits` stand for."""
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def scalar(
    logits: Float[Array, "*axes bin"], support: Float[Array, " bin"]
) -> Float[Array, "*axes"]:
    """The number that a predicted distribution stands for, back on its own scale."""
    logits = jax.lax.optimization_barrier(logits)  # XLA would make one slow kernel of all before
    return unsquash(jnp.sum(jax.nn.softmax(logits) * behind(support, logits.ndim), axis=-1))


def behind(x: Array, ndim: int) -> Array:
    """`x` behind leading axes of length 1, so that it has `ndim`."""
    return x.reshape(*[1] * (ndim - x.ndim), *x.shape)
