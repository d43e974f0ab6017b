"""What SwiGLU experts make of the tokens that each was given, and the derivatives of it.

Products take operands of the weights' type; all that stands between them is float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalezero.nets.cpu import units
from scalezero.nets.products import outer, upright

COLUMNS = 128  # tokens of an expert that are fewer than these stand in columns
ROWS = 16  # … but so few may meet gate and up in rows (`_in_rows`)

type Weights = tuple[
    Float[Array, "expert hidden embed"],
    Float[Array, "expert hidden embed"],
    Float[Array, "expert embed hidden"],
]  # of gate, up and out
type Own = tuple[Array, Array, Array]  # those of one expert; or of a stack of it alone


class Apart(NamedTuple):
    """Weights of experts that stand apart: each matrix is an array of its own."""

    experts: tuple[Own, ...]


class Sorted(NamedTuple):
    """Pairs of a token and its expert, in the order of the experts."""

    load: Int[Array, " expert"]  # tokens that each expert has
    begin: Int[Array, " expert"]  # the place of its first
    order: Int[Array, " pair"]  # which pair stands where

    def rank(self, owner: Int[Array, " pair"]) -> Int[Array, " pair"]:
        """The place of each token among those of its expert."""
        rank = jnp.arange(len(owner), dtype=jnp.int32) - self.begin[owner[self.order]]
        return jnp.zeros(len(owner), jnp.int32).at[self.order].set(rank)

    def lined(self, x: Float[Array, "pair embed"], room: int) -> Float[Array, "lined embed"]:
        """The tokens in order, with `room` to read past the last."""
        return jnp.concatenate([x[self.order], jnp.zeros((room, x.shape[-1]), x.dtype)])

    def unlined(self, y: Float[Array, "lined embed"]) -> Float[Array, "pair embed"]:
        """`lined` undone."""
        in_order = y[: len(self.order)]
        return jnp.zeros_like(in_order).at[self.order].set(in_order)


def by_expert(owner: Int[Array, " pair"], count: int) -> Sorted:
    """Sort pairs by which of `count` experts owns them; those of one expert stay in order."""
    load = jnp.sum(jax.nn.one_hot(owner, count, dtype=jnp.int32), axis=0)
    begin = (jnp.cumsum(load) - load).astype(jnp.int32)
    return Sorted(load, begin, jnp.argsort(owner, stable=True))


def swiglu(
    weights: Weights, x: Float[Array, "expert token embed"]
) -> Float[Array, "expert token embed"]:
    """out(silu(gate x) · up x) for the tokens of each expert.

    Few tokens stand in columns: times a large matrix they are fastest that way round, except for
    very few narrow ones on some CPUs (`_in_rows`).
    """
    gate, up, out = weights
    x = x.astype(gate.dtype)
    if x.shape[1] >= COLUMNS:
        hidden = jax.nn.silu(_through(gate, x)) * _through(up, x)
        return _through(out, hidden.astype(gate.dtype))
    rows = x.shape[1] <= ROWS and _in_rows(gate)
    project = functools.partial(summed, "eoi,eti->eto" if rows else "eoi,eti->eot")
    hidden = jax.nn.silu(project(gate, x)) * project(up, x)
    return upright(summed("eoi,eti->eot" if rows else "eoi,eit->eot", out, hidden))


def _in_rows(weight: Array) -> bool:
    """Whether few tokens are fastest in rows before `weight`: narrow, on a CPU without AMX."""
    here = jax.default_backend() == "cpu" and units() != "amx"
    return weight.dtype != jnp.float32 and here


def summed(axes: str, weight: Array, x: Array) -> Float[Array, "..."]:
    """An `einsum` whose second operand follows the first one's type, with sums in float32."""
    return jnp.einsum(axes, weight, x.astype(weight.dtype), preferred_element_type=jnp.float32)


def slopes(
    weights: Weights,
    x: Float[Array, "expert token embed"],
    slope: Float[Array, "expert token embed"],
) -> tuple[Float[Array, "expert token embed"], Weights]:
    """The derivatives of `swiglu` by tokens and weights, for one by what it gives.

    What lies between is computed anew, in rows: where `swiglu` takes columns, it may differ by
    rounding. Those by weights are of their type.
    """
    gate, up, out = weights
    kind = gate.dtype
    x, slope = x.astype(kind), slope.astype(kind)
    inner, factor = _through(gate, x), _through(up, x)
    active, pull = jax.vjp(jax.nn.silu, inner)
    hidden = _back(out, slope)
    (gate_slope,) = (each.astype(kind) for each in pull(hidden * factor))
    up_slope = (hidden * active).astype(kind)
    by_weights = (
        outer(gate_slope, x),
        outer(up_slope, x),
        outer(slope, (active * factor).astype(kind)),
    )
    return _back(gate, gate_slope) + _back(up, up_slope), by_weights


def _through(
    weight: Float[Array, "expert out in"], x: Float[Array, "expert token in"]
) -> Float[Array, "expert token out"]:
    """The product, rounded to the weights' type once, as `product`'s of many is."""
    return jnp.einsum("eoi,eti->eto", weight, x).astype(jnp.float32)


def _back(
    weight: Float[Array, "expert out in"], slope: Float[Array, "expert token out"]
) -> Float[Array, "expert token in"]:
    return jnp.einsum("eoi,eto->eti", weight, slope).astype(jnp.float32)
