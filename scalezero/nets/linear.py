"""The one linear layer everything is built from, and stacks of it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Linear(eqx.Module):
    """An affine map of one vector; `jax.vmap` it over every other axis."""

    weight: Float[Array, "*axes out in"]
    bias: Float[Array, "*axes out"] | None

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        """`weight @ x + bias`."""
        y = self.weight @ x
        return y if self.bias is None else y + self.bias


def linear(
    fan_in: int, fan_out: int, *, gain: float = 1.0, bias: bool = True, key: PRNGKeyArray
) -> Linear:
    """A fresh layer: weight truncated-normal (±2σ, σ² = `gain`²/`fan_in`), bias zero."""
    weight = jax.random.truncated_normal(key, -2, 2, (fan_out, fan_in)) * (gain * fan_in**-0.5)
    return Linear(weight, jnp.zeros(fan_out) if bias else None)


class Mlp(eqx.Module):
    """Two linear layers with a GELU between, applied to one vector."""

    first: Linear
    last: Linear

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        """Apply both layers."""
        return self.last(jax.nn.gelu(self.first(x)))


def mlp(fan_in: int, hidden: int, fan_out: int, *, gain: float = 1.0, key: PRNGKeyArray) -> Mlp:
    """A fresh `Mlp` whose last layer is scaled by `gain` (0: it starts as a constant zero)."""
    first, last = jax.random.split(key)
    return Mlp(linear(fan_in, hidden, key=first), linear(hidden, fan_out, gain=gain, key=last))


def stack[Layer](make: Callable[[PRNGKeyArray], Layer], count: int, *, key: PRNGKeyArray) -> Layer:
    """`count` layers made by `make` from their own keys, as one layer with a leading axis."""
    return eqx.filter_vmap(make)(jax.random.split(key, count))
