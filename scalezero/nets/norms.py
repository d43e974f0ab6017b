"""How vectors are kept in range: layer normalisation and simplicial normalisation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5


class LayerNorm(eqx.Module):
    """Zero mean and unit variance over one vector, then a learnt gain and shift; in float32."""

    gain: Float[Array, " embed"]
    shift: Float[Array, " embed"]

    def __call__(self, x: Float[Array, " embed"]) -> Float[Array, " embed"]:
        """Normalise `x`; the result has `x`'s dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide)
        unit = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred)) + EPSILON)
        gain, shift = self.gain.astype(jnp.float32), self.shift.astype(jnp.float32)
        return (unit * gain + shift).astype(x.dtype)


def layer_norm(size: int) -> LayerNorm:
    """A fresh `LayerNorm`: gain 1, shift 0."""
    return LayerNorm(jnp.ones(size), jnp.zeros(size))


class SimNorm(eqx.Module):
    """A softmax inside each consecutive group of `group` entries.

    Source: TD-MPC2, Eq. 5 (arXiv:2310.16828); UniZero, Section 3.2 (arXiv:2406.10667).
    """

    group: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, " embed"]) -> Float[Array, " embed"]:
        """Each group of the result is a probability distribution."""
        groups = x.astype(jnp.float32).reshape(-1, self.group)
        return jax.nn.softmax(groups, axis=-1).reshape(x.shape).astype(x.dtype)
