"""The encoder of one task's state vectors."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scalezero.nets.linear import Linear, linear
from scalezero.nets.norms import LayerNorm, layer_norm


class VectorEncoder(eqx.Module):
    """symlog, linear, layer norm, GELU, linear: entries of any scale become one token.

    Source: LightZero's encoder of proprioceptive states (linear, norm, GELU, linear). Differs:
    `symlog` in front, so that unbounded velocities neither saturate nor dominate.
    """

    first: Linear
    norm: LayerNorm
    last: Linear

    def __call__(self, state: Float[Array, " size"]) -> Float[Array, " embed"]:
        """The vector that stands for `state`, not yet normalised as a latent."""
        squashed = jnp.sign(state) * jnp.log1p(jnp.abs(state))
        return self.last(jax.nn.gelu(self.norm(self.first(squashed))))


def vector_encoder(size: int, hidden: int, embed: int, *, key: PRNGKeyArray) -> VectorEncoder:
    """A fresh encoder of vectors with `size` entries."""
    first, last = jax.random.split(key)
    return VectorEncoder(
        linear(size, hidden, key=first), layer_norm(hidden), linear(hidden, embed, key=last)
    )
