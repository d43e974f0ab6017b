"""The feed-forward layer of a block: routed SwiGLU experts plus one shared expert.

Every token goes to its `picks` best experts, whatever the load: no token is ever dropped. The cost
follows the routing: tokens are sorted into one bucket for each expert, and the smallest compiled
bucket size that fits the fullest expert is used.

Sources: ScaleZero, Section 4.1 (arXiv:2509.07945); SwiGLU, arXiv:2002.05202. Differs: the softmax
comes before the choice, so that the gate's probability multiplies the expert's output and the
router learns; with `router="paper"` it comes after, and at one pick the router gets no gradient.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scalezero.nets.linear import Linear, Mlp, linear, mlp, stack

# Below this many multiply-adds for each token, computing all experts beats sorting tokens.
DENSE_BELOW = 1 << 18


class Expert(eqx.Module):
    """One SwiGLU expert, `out(silu(gate x) · up x)`, without biases."""

    gate: Linear
    up: Linear
    out: Linear

    def __call__(self, x: Float[Array, " embed"]) -> Float[Array, " embed"]:
        """Apply the expert to one token."""
        return self.out(jax.nn.silu(self.gate(x)) * self.up(x))


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
    routed: Expert  # every leaf has a leading `expert` axis
    shared: Mlp
    picks: int = eqx.field(static=True)
    kind: Literal["trained", "paper"] = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "token embed"]
    ) -> tuple[Float[Array, "token embed"], Routing]:
        """The layer's output for every token, and its routing."""
        logits = jax.vmap(self.router)(x.astype(self.router.weight.dtype)).astype(jnp.float32)
        if self.kind == "trained":
            weight, chosen = jax.lax.top_k(jax.nn.softmax(logits), self.picks)
        else:
            best, chosen = jax.lax.top_k(logits, self.picks)
            weight = jax.nn.softmax(best)
        y = jax.vmap(self.shared)(x)
        y = y + _routed(self.routed, x, chosen, weight.astype(x.dtype))
        return y, Routing(logits, chosen)


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


def _routed(
    routed: Expert,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    weight: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Σ over picks of weight · expert(x), by whichever way is cheaper at this size."""
    count, hidden, embed = routed.gate.weight.shape
    if 3 * count * hidden * embed <= DENSE_BELOW or len(x) <= count:
        return _dense(routed, x, chosen, weight)
    return _bucketed(routed, x, chosen, weight)


def _dense(
    routed: Expert,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    weight: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Every expert sees every token; unchosen ones weigh zero."""
    count = len(routed.gate.weight)
    share = jnp.sum(jax.nn.one_hot(chosen, count, dtype=x.dtype) * weight[..., None], axis=1)
    # The weight may be applied before `out`, which is linear: one product sums over experts.
    hidden = jax.nn.silu(jnp.einsum("ehd,nd->neh", routed.gate.matrix, x)) * jnp.einsum(
        "ehd,nd->neh", routed.up.matrix, x
    )
    return jnp.einsum("edh,neh->nd", routed.out.matrix, hidden * share[..., None])


def _bucketed(
    routed: Expert,
    x: Float[Array, "token embed"],
    chosen: Int[Array, "token pick"],
    weight: Float[Array, "token pick"],
) -> Float[Array, "token embed"]:
    """Tokens sorted by expert into buckets of the smallest size that loses none."""
    count = len(routed.gate.weight)
    tokens, picks = chosen.shape
    pairs = tokens * picks
    owner = chosen.reshape(-1)
    load = jnp.sum(jax.nn.one_hot(owner, count, dtype=jnp.int32), axis=0)
    order = jnp.argsort(owner, stable=True)
    begin = jnp.cumsum(load) - load
    rank = (
        jnp.zeros(pairs, jnp.int32)
        .at[order]
        .set(jnp.arange(pairs, dtype=jnp.int32) - begin[owner[order]].astype(jnp.int32))
    )
    spread = jnp.repeat(x, picks, axis=0)

    def within(capacity: int) -> Float[Array, "token embed"]:
        bucket = jnp.zeros((count, capacity, x.shape[-1]), x.dtype)
        bucket = bucket.at[owner, rank].set(spread, mode="drop")
        done = eqx.filter_vmap(lambda each, tokens: jax.vmap(each)(tokens))(routed, bucket)
        back = done.at[owner, rank].get(mode="fill", fill_value=0)
        return jnp.sum(back.reshape(tokens, picks, -1) * weight[..., None], axis=1)

    sizes = capacities(pairs, count)
    fits = jnp.sum(jnp.max(load) > jnp.array(sizes[:-1], jnp.int32))
    return jax.lax.switch(fits, [lambda size=size: within(size) for size in sizes])


def capacities(pairs: int, count: int) -> tuple[int, ...]:
    """Bucket sizes to compile: from an even load upwards in doublings, up to everything."""
    sizes, size = [], -(-5 * pairs // (4 * count))
    while size < pairs:
        sizes.append(size)
        size *= 2
    return (*sizes, pairs)
