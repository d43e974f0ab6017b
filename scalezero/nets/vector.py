"""The encoder of one task's state vectors."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from scalezero.nets.linear import Linear, linear
from scalezero.nets.norms import LayerNorm, RunningNorm, layer_norm, running_norm


class VectorEncoder(eqx.Module):
    """Running norm, linear, layer norm, GELU, linear: entries of any scale become one token.

    Source: LightZero's encoder of proprioceptive states (linear, norm, GELU, linear). Differs:
    entries are normalised first.
    """

    scale: RunningNorm
    first: Linear
    norm: LayerNorm
    last: Linear

    def __call__(self, states: Float[Array, "row size"]) -> Float[Array, "row embed"]:
        """The vectors that stand for `states`, not yet normalised as latents."""
        inner = jax.vmap(self.norm)(self.first(jax.vmap(self.scale)(states)))
        return self.last(jax.nn.gelu(inner))


def vector_encoder(size: int, hidden: int, embed: int, *, key: PRNGKeyArray) -> VectorEncoder:
    """A fresh encoder of vectors with `size` entries."""
    first, last = jax.random.split(key)
    return VectorEncoder(
        running_norm(size),
        linear(size, hidden, key=first),
        layer_norm(hidden),
        linear(hidden, embed, key=last),
    )
