"""Matrix products whose operands may be narrow; whatever stands between them is float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(
    matrix: Float[Array, "out in"], x: Float[Array, "*axes in"]
) -> Float[Array, "*axes out"]:
    """`matrix` times each vector, which follows its type; the result is float32.

    A narrow product is rounded to the matrix's type first, and so is its cotangent: so all three
    products of a gradient are narrow.
    """
    # With vectors first, as XLA knows to make narrow products of many of them on a CPU.
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x.astype(matrix.dtype), matrix, axes).astype(jnp.float32)


def outer(
    left: Float[Array, "expert bucket out"], right: Float[Array, "expert bucket in"]
) -> Float[Array, "expert out in"]:
    """Σ over tokens of left ⊗ right of each expert, in the type of both; the sums are float32."""
    if left.dtype == jnp.float32 or jax.default_backend() != "cpu":
        return jnp.einsum("eva,evb->eab", left, right)
    # A CPU's units for narrow products want the left side turned. XLA leaves a turn as it is, and
    # makes a float32 product, unless the turn is a loop.
    return jnp.einsum("eav,evb->eab", jax.lax.map(jnp.transpose, left), right)
