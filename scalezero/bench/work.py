"""How much must a computation do: operations of its products, and bytes that they touch?

Counted in what JAX traces, before anything is compiled, so it says what the algorithm asks for and
not what a compiler made of it. Experts count as if each had as many tokens as every other and none
had room to spare; of the ways that a switch may go the cheapest counts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from math import prod
from typing import Any
from unittest.mock import patch

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalezero.nets import experts
from scalezero.nets.swiglu import Apart, Weights


@dataclass(frozen=True)
class Work:
    """Operations (a multiply-add is two), and bytes of the operands and results of products."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        """Both."""
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float | int) -> "Work":
        """So many times."""
        return Work(times * self.flops, times * self.bytes)

    def seconds(self, flops: float, bytes: float) -> float:
        """The least it takes with so many operations and bytes per second."""
        return max(self.flops / flops, self.bytes / bytes)


NO_WORK = Work(0.0, 0.0)


def work(function: Callable[..., Any], *args: Any, rounds: Iterable[float] = repeat(1.0)) -> Work:
    """What `function` must do when called with `args`; it is traced, so it must not be compiled.

    Args:
        function: With its arguments behind it.
        rounds: How often each loop of unknown length goes round that has products in it, in order,
            those of every branch of a switch included.

    Raises:
        ValueError: `rounds` are too few.
    """
    with patch.object(experts, "routed", _even):
        traced, *_ = eqx.filter_make_jaxpr(function)(*args)
    return _total(traced.jaxpr, iter(rounds))


def _even(
    weights: Weights | Apart,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    share: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """In the shape of `grouped.routed`: its products if the load is even. The values are wrong."""
    apart = isinstance(weights, Apart)
    stack = lambda *each: jnp.stack(each)
    gate, up, out = jax.tree.map(stack, *weights.experts) if apart else weights
    pairs = jnp.repeat(x, chosen.shape[1], axis=0)
    groups = min(len(gate), len(pairs))
    made = lambda weight, x: jnp.einsum("ehd,ecd->ech", weight[: len(x)], x.astype(weight.dtype))
    through = lambda x: made(out, jax.nn.silu(made(gate, x)) * made(up, x))
    whole = len(pairs) // groups * groups
    parts = [pairs[:whole].reshape(groups, -1, x.shape[-1])]
    parts += [pairs[whole:][None]] if whole < len(pairs) else []
    done = jnp.concatenate([through(part).reshape(-1, x.shape[-1]) for part in parts])
    return jnp.sum(done.reshape(*chosen.shape, -1).astype(x.dtype) * share[..., None], axis=1)


def _total(jaxpr: Any, rounds: Iterator[float]) -> Work:
    return sum((_of(equation, rounds) for equation in jaxpr.eqns), start=NO_WORK)


def _of(equation: Any, rounds: Iterator[float]) -> Work:
    inside = [_total(inner, rounds) for inner in _inner(equation)]
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = prod(shape[axis] for axis in contracted)
            return Work(2.0 * depth * _size(equation.outvars), _touched(equation))
        case "conv_general_dilated":
            kernel = equation.invars[1].aval
            out = equation.params["dimension_numbers"].rhs_spec[0]
            between = prod(equation.params["lhs_dilation"])  # zeros between its inputs
            depth = kernel.size / kernel.shape[out] / between
            return Work(2.0 * depth * _size(equation.outvars), _touched(equation))
        case "cond":
            return min(inside, key=lambda each: (each.flops, each.bytes))
        case "scan":
            return sum(inside, start=NO_WORK) * equation.params["length"]
        case "while":
            once = sum(inside, start=NO_WORK)
            if not once.flops:
                return NO_WORK
            if (times := next(rounds, None)) is None:
                raise ValueError("there are more loops with products in them than `rounds` given")
            return once * times
        case _:
            return sum(inside, start=NO_WORK)


def _inner(equation: Any) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def _size(variables: Any) -> int:
    return sum(variable.aval.size for variable in variables)


def _touched(equation: Any) -> float:
    both = (*equation.invars, *equation.outvars)
    return float(sum(each.aval.size * each.aval.dtype.itemsize for each in both))
