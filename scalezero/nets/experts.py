"""The feed-forward layer of a block: routed SwiGLU experts plus one shared expert.

Every token goes to its `picks` best experts, whatever the load; `grouped.py` computes them.

Sources: ScaleZero, Section 4.1 (arXiv:2509.07945); SwiGLU, arXiv:2002.05202. Differs: the softmax
comes before the choice, so that the gate's probability multiplies the expert's output and the
router learns; with `router="paper"` it comes after, and at one pick the router gets no gradient.
"""

from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scalezero.nets.grouped import routed
from scalezero.nets.linear import Linear, Mlp, linear, mlp, stack
from scalezero.nets.swiglu import Apart

MOST_APART = 16  # of a layer; XLA loads a program in a time that grows as its products, squared


class Expert(eqx.Module):
    """One SwiGLU expert, `out(silu(gate x) · up x)`, without biases."""

    gate: Linear
    up: Linear
    out: Linear

    def __call__(self, x: Float[Array, "*axes embed"]) -> Float[Array, "*axes embed"]:
        """Apply the expert to each token."""
        return self.out(jax.nn.silu(self.gate(x)) * self.up(x))

    @property
    def matrices(self) -> tuple[Array, Array, Array]:
        """Of gate, up and out, adapters folded in; of a stack, with its axis."""
        return self.gate.matrix, self.up.matrix, self.out.matrix


def expert(embed: int, hidden: int, *, key: PRNGKeyArray) -> Expert:
    """A fresh expert."""
    gate, up, out = jax.random.split(key, 3)
    return Expert(
        linear(embed, hidden, bias=False, key=gate),
        linear(embed, hidden, bias=False, key=up),
        linear(hidden, embed, bias=False, key=out),
    )


class Routing(eqx.Module):
    """Where tokens went, for the losses that shape a router and for the logs."""

    logits: Float[Array, "*axes expert"]
    chosen: Int[Array, "*axes pick"]


class Experts(eqx.Module):
    """Routed experts and the shared one, over all tokens of a batch at once."""

    router: Linear
    routed: Expert | tuple[Expert, ...]  # a leading `expert` axis on every leaf; or `apart`
    shared: Mlp
    picks: int = eqx.field(static=True)
    kind: Literal["trained", "paper"] = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "token embed"]
    ) -> tuple[Float[Array, "token embed"], Routing]:
        """The layer's output for every token, and its routing."""
        logits = self.router(x)
        if self.kind == "trained":
            weight, chosen = jax.lax.top_k(jax.nn.softmax(logits), self.picks)
        else:
            best, chosen = jax.lax.top_k(logits, self.picks)
            weight = jax.nn.softmax(best)
        y = self.shared(x)
        each = self.routed
        stacked = isinstance(each, Expert)
        weights = each.matrices if stacked else Apart(tuple(expert.matrices for expert in each))
        y = y + routed(weights, x, chosen, weight)
        return y, Routing(logits, chosen)

    @property
    def can_part(self) -> bool:
        """Whether the experts stand in a stack, and are few enough to stand `apart`."""
        return isinstance(self.routed, Expert) and len(self.routed.gate.weight) <= MOST_APART

    def apart(self) -> "Experts":
        """The same layer with experts that stand apart, so that none is copied to be read.

        For searches alone: compiled, it has no derivative.
        """
        if not self.can_part:
            return self
        only = lambda index: jax.tree.map(lambda leaf: leaf[index], self.routed)
        single = tuple(only(index) for index in range(self.router.weight.shape[0]))
        return Experts(self.router, single, self.shared, self.picks, self.kind)


def experts(
    embed: int,
    count: int,
    hidden: int,
    shared_hidden: int,
    picks: int,
    kind: Literal["trained", "paper"],
    *,
    key: PRNGKeyArray,
) -> Experts:
    """`count` fresh experts of width `hidden`, and a shared one of width `shared_hidden`."""
    route, each, shared = jax.random.split(key, 3)
    return Experts(
        linear(embed, count, bias=False, key=route),
        stack(lambda k: expert(embed, hidden, key=k), count, key=each),
        mlp(embed, shared_hidden, embed, key=shared),
        picks,
        kind,
    )
