"""How vectors are kept in range: by layer, by simplex, or by what was seen so far."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5
FLOOR = 1e-2  # an entry's deviation counts as at least this much
SLOWEST = 1e-3  # the share of a new batch in running statistics never falls below this


class LayerNorm(eqx.Module):
    """Zero mean and unit variance over one vector, then a learnt gain and shift; in float32."""

    gain: Float[Array, " embed"]
    shift: Float[Array, " embed"]
    epsilon: float = eqx.field(static=True, default=EPSILON)

    def __call__(self, x: Float[Array, " embed"]) -> Float[Array, " embed"]:
        """Normalise `x`; the result has `x`'s dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide)
        unit = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred)) + self.epsilon)
        gain, shift = self.gain.astype(jnp.float32), self.shift.astype(jnp.float32)
        return (unit * gain + shift).astype(x.dtype)


def layer_norm(size: int, epsilon: float = EPSILON) -> LayerNorm:
    """A fresh `LayerNorm`: gain 1, shift 0."""
    return LayerNorm(jnp.ones(size), jnp.zeros(size), epsilon)


class SimNorm(eqx.Module):
    """A softmax inside each consecutive group of `group` entries.

    Source: TD-MPC2, Eq. 5 (arXiv:2310.16828); UniZero, Section 3.2 (arXiv:2406.10667).
    """

    group: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, " embed"]) -> Float[Array, " embed"]:
        """Each group of the result is a probability distribution."""
        groups = x.astype(jnp.float32).reshape(-1, self.group)
        return jax.nn.softmax(groups, axis=-1).reshape(x.shape).astype(x.dtype)


class RunningNorm(eqx.Module):
    """Zero mean and unit variance for each entry, by running statistics; not learnt by gradients.

    So an entry that varies little, as a pole's angle does once the pole is balanced, speaks as
    loudly as one that varies much. The statistics follow the data for ever, at a rate that falls
    as 1/n to `SLOWEST`.

    Source: SimBa's RSNorm (arXiv:2410.09754). Differs: outliers are damped by symlog, not clipped.
    """

    mean: Float[Array, "*axes size"]
    variance: Float[Array, "*axes size"]
    batches: Float[Array, "*axes"]  # that the statistics rest on

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        """Normalise `x`."""
        mean, variance = jax.lax.stop_gradient((self.mean, self.variance))
        unit = (x - mean) * jax.lax.rsqrt(variance + FLOOR**2)
        return jnp.sign(unit) * jnp.log1p(jnp.abs(unit))

    def watch(self, x: Float[Array, "row size"], weight: Float[Array, " row"]) -> "RunningNorm":
        """The norm after one more batch, of which each row counts by its weight; all 0: as it was.

        A first batch replaces what the norm began with.
        """
        total = jnp.sum(weight)
        share = weight / jnp.maximum(total, 1e-30)
        x = jnp.where(weight[:, None] > 0, x, 0)
        mean = share @ x
        variance = share @ jnp.square(x - mean[None])
        seen = (total > 0).astype(x.dtype)
        rate = seen * jnp.maximum(1 / (self.batches + 1), SLOWEST)
        change = mean - self.mean
        return RunningNorm(
            mean=self.mean + rate * change,
            variance=(1 - rate) * (self.variance + rate * jnp.square(change)) + rate * variance,
            batches=self.batches + seen,
        )


def running_norm(size: int) -> RunningNorm:
    """A `RunningNorm` that has seen nothing, and so changes the scale of nothing."""
    return RunningNorm(jnp.zeros(size), jnp.ones(size), jnp.zeros(()))
