"""The one linear layer everything is built from, stacks of it, and the adapters it can grow.

With α bounded to 1 ± `SPAN`, an adapted layer computes

    y = α₀ W x + b + Σⱼ αⱼ scale Uⱼ Dⱼ x

U starts at zero and every α at 1, so growing an adapter never changes what the layer computes.
Matrices may be narrow (`narrowed`); what a layer gives is float32.
Vectors may come on axes, as the backbone's do, for whose narrow matrices `product` asks that.

Source: ScaleZero, Section 4.2 (arXiv:2509.07945); LoRA, arXiv:2106.09685. The bound of α is that of
LightZero's `LearnableScale`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scalezero.nets.products import product

SPAN = 0.2  # α may move this far either side of 1
DOWN_SPREAD = 0.01  # standard deviation of a fresh adapter's D


def strengthened(
    y: Float[Array, "..."], logit: Float[Array, "*axes"] | None
) -> Float[Array, "..."]:
    """`y` times the α ∈ (1 - SPAN, 1 + SPAN) that an unbounded logit stands for.

    Args:
        y: Its leading axes are those of `logit`.
        logit: Without one, α is 1.
    """
    if logit is None:
        return y
    alpha = (1 + SPAN * jnp.tanh(logit)).astype(y.dtype)
    return alpha.reshape(*alpha.shape, *[1] * (y.ndim - alpha.ndim)) * y


class Adapter(eqx.Module):
    """One low-rank correction to a `Linear`."""

    down: Float[Array, "*axes rank in"]
    up: Float[Array, "*axes out rank"]
    alpha: Float[Array, "*axes"] | None  # its logit; None: α is 1 for ever
    scale: float = eqx.field(static=True)
    dropout: float = eqx.field(static=True, default=0.0)  # share of the inputs, while it learns

    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        """The correction to add to the layer's output."""
        y = product(self.up, product(self.down, x))
        return strengthened(self.scale * y, self.alpha)

    @property
    def matrix(self) -> Float[Array, "*axes out in"]:
        """What the correction adds to the layer's weight; of a stacked layer, of each."""
        return strengthened(self.scale * (self.up @ self.down), self.alpha)


class Linear(eqx.Module):
    """An affine map of vectors."""

    weight: Float[Array, "*axes out in"]
    bias: Float[Array, "*axes out"] | None
    alpha: Float[Array, "*axes"] | None = None  # the logit of α₀
    adapters: tuple[Adapter, ...] = ()

    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        """Apply the base map and every adapter grown so far."""
        y = strengthened(product(self.weight, x), self.alpha)
        y = y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)
        return sum((adapter(x) for adapter in self.adapters), start=y)

    @property
    def matrix(self) -> Float[Array, "*axes out in"]:
        """The one matrix that base and adapters amount to; of a stacked layer, of each."""
        base = strengthened(self.weight, self.alpha)
        return sum((adapter.matrix for adapter in self.adapters), start=base)


def linear(
    fan_in: int, fan_out: int, *, gain: float = 1.0, bias: bool = True, key: PRNGKeyArray
) -> Linear:
    """A fresh layer: weight truncated-normal (±2σ, σ² = `gain`²/`fan_in`), bias zero."""
    weight = jax.random.truncated_normal(key, -2, 2, (fan_out, fan_in)) * (gain * fan_in**-0.5)
    return Linear(weight, jnp.zeros(fan_out) if bias else None)


def with_adapter(
    layer: Linear,
    rank: int,
    scale: float,
    *,
    learnt: bool,
    dropout: float = 0.0,
    key: PRNGKeyArray,
) -> Linear:
    """`layer`, single or stacked, with one more adapter; it computes what it computed before.

    Args:
        layer: What grows.
        rank: Of the adapter.
        scale: The fixed factor of the correction (LoRA's alpha / rank).
        learnt: Whether α₀ and αⱼ are there to be learnt; otherwise they are 1.
        dropout: The share of inputs that `dropped` hides from the adapter.
        key: Consumed.
    """
    *stack, fan_out, fan_in = layer.weight.shape
    logit = lambda: jnp.zeros(stack) if learnt else None
    down = DOWN_SPREAD * jax.random.normal(key, (*stack, rank, fan_in))
    adapter = Adapter(down, jnp.zeros((*stack, fan_out, rank)), logit(), scale, dropout)
    base = logit() if layer.alpha is None else layer.alpha
    return Linear(layer.weight, layer.bias, base, (*layer.adapters, adapter))


def dropped(layer: Linear, *, key: PRNGKeyArray) -> Linear:
    """`layer` with some of its inputs hidden from its adapters, the others made up for them.

    The same inputs for every vector that it is applied to, so that a layer stays a function.
    """
    keys = jax.random.split(key, len(layer.adapters))

    def drop(adapter: Adapter, key: PRNGKeyArray) -> Adapter:
        *stack, _, fan_in = adapter.down.shape
        seen = jax.random.bernoulli(key, 1 - adapter.dropout, (*stack, 1, fan_in))
        down = jnp.where(seen, adapter.down / (1 - adapter.dropout), 0.0)
        return Adapter(down, adapter.up, adapter.alpha, adapter.scale, adapter.dropout)

    adapters = tuple(
        drop(each, k) if each.dropout else each
        for each, k in zip(layer.adapters, keys, strict=True)
    )
    return Linear(layer.weight, layer.bias, layer.alpha, adapters)


def narrowed[Tree](tree: Tree, precision: str) -> Tree:
    """`tree` with all matrices of its linear layers of type `precision`, but for routers'.

    Stacked layers, which are applied as one matrix each, have their adapters folded in before: what
    these add would be lost beside a weight that is narrow already.
    """

    def narrow(path: tuple[Any, ...], node: Any) -> Any:
        if not _is_linear(node) or "router" in (getattr(part, "name", "") for part in path):
            return node
        node = merged(node) if node.adapters and node.weight.ndim > 2 else node
        cast = lambda matrix: matrix.astype(precision)
        adapters = tuple(
            Adapter(cast(each.down), cast(each.up), each.alpha, each.scale, each.dropout)
            for each in node.adapters
        )
        return Linear(cast(node.weight), node.bias, node.alpha, adapters)

    return jax.tree_util.tree_map_with_path(narrow, tree, is_leaf=_is_linear)


def _is_linear(node: Any) -> bool:
    return isinstance(node, Linear)


def merged(layer: Linear) -> Linear:
    """A plain layer that computes what `layer` does with all its adapters, to rounding."""
    return Linear(layer.matrix, layer.bias)


class Mlp(eqx.Module):
    """Two linear layers with a GELU between, applied to vectors."""

    first: Linear
    last: Linear

    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        """Apply both layers."""
        return self.last(jax.nn.gelu(self.first(x)))


def mlp(fan_in: int, hidden: int, fan_out: int, *, gain: float = 1.0, key: PRNGKeyArray) -> Mlp:
    """A fresh `Mlp` whose last layer is scaled by `gain` (0: it starts as a constant zero)."""
    first, last = jax.random.split(key)
    return Mlp(linear(fan_in, hidden, key=first), linear(hidden, fan_out, gain=gain, key=last))


def stack[Layer](make: Callable[[PRNGKeyArray], Layer], count: int, *, key: PRNGKeyArray) -> Layer:
    """`count` layers made by `make` from their own keys, as one layer with a leading axis."""
    return eqx.filter_vmap(make)(jax.random.split(key, count))
