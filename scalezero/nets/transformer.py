"""A causal transformer over sliding windows, for whole batches of sequences.

Blocks are pre-norm: attention within each sequence, then a feed-forward layer over the tokens of
all sequences at once, so that experts can be grouped across the batch.
"""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scalezero.nets.attention import Attention, Ring, at_places, attention
from scalezero.nets.experts import Experts, Routing, experts
from scalezero.nets.linear import Mlp, mlp
from scalezero.nets.norms import LayerNorm, layer_norm


class Cache(eqx.Module):
    """What each sequence needs to go on: one ring for each layer, and where it stands."""

    rings: tuple[Ring, ...]
    position: Int[Array, " row"]  # of the next token
    start: Int[Array, " row"]  # of the first real token; before it is padding


class Block(eqx.Module):
    """One pre-norm block."""

    before_attention: LayerNorm
    attention: Attention
    before_forward: LayerNorm
    forward: Experts | Mlp

    def feed(
        self, x: Float[Array, "*axes embed"]
    ) -> tuple[Float[Array, "*axes embed"], Routing | None]:
        """The feed-forward half, with its residual, over all leading axes at once."""
        flat = x.reshape(-1, x.shape[-1])
        inner = jax.vmap(self.before_forward)(flat)
        if isinstance(self.forward, Mlp):
            return x + self.forward(inner).reshape(x.shape), None
        y, routing = self.forward(inner)
        routing = jax.tree.map(lambda a: a.reshape(*x.shape[:-1], -1), routing)
        return x + y.reshape(x.shape), routing

    def whole(
        self,
        x: Float[Array, "row token embed"],
        start: Int[Array, " row"],
        asking: Int[Array, "row asking"] | None,
    ) -> tuple[Float[Array, "row asking embed"], Ring, Routing | None]:
        """Whole sequences after the block, or some of their tokens; what it looked at."""
        inner = jax.vmap(jax.vmap(self.before_attention))(x)
        y, past = self.attention.sequences(inner, start, asking)
        x, routing = self.feed((x if asking is None else at_places(x, asking)) + y)
        return x, past, routing


class Transformer(eqx.Module):
    """The backbone: tokens in, features out, both `embed` wide."""

    blocks: tuple[Block, ...]
    last: LayerNorm
    rematerialise: bool = eqx.field(static=True)

    def sequence(
        self, tokens: Float[Array, "row token embed"], start: Int[Array, " row"]
    ) -> tuple[Float[Array, "row token embed"], Cache]:
        """The features of whole sequences, and the caches to go on from.

        Args:
            tokens: One sequence for each row.
            start: The place of each row's first real token; those before it are padding, seen
                by no real token.
        """
        count = tokens.shape[1]
        features, past, _ = self._pass(tokens, start)
        rings = tuple(
            jax.vmap(lambda each, layer=block.attention: layer.ring(each, count))(ring)
            for block, ring in zip(self.blocks, past, strict=True)
        )
        return features, Cache(rings, jnp.full_like(start, count), start)

    def window(
        self, tokens: Float[Array, "row token embed"]
    ) -> tuple[Float[Array, "row token embed"], tuple[Routing, ...]]:
        """The features of whole windows without padding, and where their tokens were routed."""
        features, _, routings = self._pass(tokens, jnp.zeros(len(tokens), jnp.int32))
        return features, routings

    def later(
        self, tokens: Float[Array, "row token embed"], first: Int[Array, " row"], count: int
    ) -> Float[Array, "row asking embed"]:
        """Of what `window` gives, `count` features: every other one from place `first` on.

        The last place, `first + 2 * count - 2`, must be in the window. Each block gives only what
        the next looks back on; where in a window tokens stand does not matter, since positions are
        relative.
        """
        size, span = tokens.shape[1], 2 * count - 1
        begin, wanted = jnp.zeros_like(first), []
        for above in reversed(range(len(self.blocks))):  # how many blocks come after
            reach = above * (self.blocks[0].attention.window - 1)
            room, step = (span + reach, 1) if above else (count, 2)
            if room >= size:
                wanted.append(None)
                continue
            place = jnp.maximum(first - reach, 0)
            wanted.append((place - begin)[:, None] + step * jnp.arange(room)[None])
            begin = place
        features, _, _ = self._pass(tokens, jnp.zeros_like(first), wanted)
        return features

    def _pass(
        self,
        tokens: Float[Array, "row token embed"],
        start: Int[Array, " row"],
        wanted: Sequence[Int[Array, "row _"] | None] | None = None,
    ) -> tuple[Float[Array, "row asking embed"], list[Ring], tuple[Routing, ...]]:
        """Through all blocks; each gives the tokens that are `wanted` of it, or all."""
        x, past, routings = tokens, [], []
        for block, asking in zip(self.blocks, wanted or [None] * len(self.blocks), strict=True):
            whole = eqx.filter_checkpoint(Block.whole) if self.rematerialise else Block.whole
            x, ring, routing = whole(block, x, start, asking)
            past.append(ring)
            routings.extend([] if routing is None else [routing])
        return jax.vmap(jax.vmap(self.last))(x), past, tuple(routings)

    def apart(self) -> "Transformer":
        """The same backbone, with experts that stand apart."""
        spread = lambda node: node.apart() if isinstance(node, Experts) else node
        return jax.tree.map(spread, self, is_leaf=lambda node: isinstance(node, Experts))

    @property
    def can_part(self) -> bool:
        """Whether `apart` changes anything."""
        layers = (block.forward for block in self.blocks)
        return any(isinstance(each, Experts) and each.can_part for each in layers)

    def step(
        self, token: Float[Array, "row embed"], cache: Cache
    ) -> tuple[Float[Array, "row embed"], Cache]:
        """The feature of one more token for each row, and the caches after it."""
        x, rings = token, []
        for block, ring in zip(self.blocks, cache.rings, strict=True):
            inner = jax.vmap(block.before_attention)(x)
            y, ring = block.attention.step(inner, ring, cache.position, cache.start)
            x, _ = block.feed(x + y)
            rings.append(ring)
        return jax.vmap(self.last)(x), Cache(tuple(rings), cache.position + 1, cache.start)


def transformer(
    embed: int,
    layers: int,
    heads: int,
    window: int,
    *,
    routed: int,
    routed_hidden: int,
    shared_hidden: int,
    picks: int,
    router: Literal["trained", "paper"],
    rematerialise: bool = False,
    key: PRNGKeyArray,
) -> Transformer:
    """A fresh backbone; with `routed` = 0 its feed-forward layers are dense.

    With `rematerialise`, a gradient computes what blocks hold anew instead of keeping it.
    """

    def block(k: PRNGKeyArray) -> Block:
        attend, forward = jax.random.split(k)
        if routed:
            inner = experts(embed, routed, routed_hidden, shared_hidden, picks, router, key=forward)
        else:
            inner = mlp(embed, shared_hidden, embed, key=forward)
        return Block(
            layer_norm(embed),
            attention(embed, heads, window, key=attend),
            layer_norm(embed),
            inner,
        )

    blocks = tuple(block(k) for k in jax.random.split(key, layers))
    return Transformer(blocks, layer_norm(embed), rematerialise)
