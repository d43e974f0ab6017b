"""Causal self-attention over a sliding window, for whole sequences and for one more token.

A token attends to itself and to the `window - 1` tokens before it. Keys and values of these live in
a ring: the token at position p has place p mod `window`. Rotary positions make attention depend
on distances alone, so a ring never has to be shifted, and stepping through a sequence token by
token gives what the whole sequence gives at once.

Sources: rotary positions, arXiv:2104.09864. Differs: UniZero adds learnt absolute positions and
corrects cached keys approximately when its window moves.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from scalezero.nets.linear import Linear, linear

ROTARY_BASE = 10_000.0


class Ring(eqx.Module):
    """The keys and values of the last `window` tokens of one sequence, of its matrices' type."""

    key: Float[Array, "*axes window head key"]
    value: Float[Array, "*axes window head key"]


def rotate(
    x: Float[Array, "*axes token head key"], position: Int[Array, "... token"]
) -> Float[Array, "*axes token head key"]:
    """`x` with each pair of entries turned by an angle proportional to the token's position."""
    half = x.shape[-1] // 2
    frequency = ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.multiply.outer(position.astype(jnp.float32), frequency)[..., None, :]
    left, right = x[..., :half], x[..., half:]
    wave = lambda of: jnp.broadcast_to(of(angle).astype(x.dtype), left.shape)
    cos, sin = wave(jnp.cos), wave(jnp.sin)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def at_places(
    x: Float[Array, "row token embed"], places: Int[Array, "row asking"]
) -> Float[Array, "row asking embed"]:
    """Some tokens of each row."""
    return jnp.take_along_axis(x, places[..., None], axis=1)


def mix(
    query: Float[Array, "asking head key"],
    key: Float[Array, "window head key"],
    value: Float[Array, "window head key"],
    visible: Bool[Array, "asking window"],
) -> Float[Array, "asking head key"]:
    """Softmax attention of every token over the places that are visible to it."""
    sums = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = sums("thk,whk->htw", query.astype(key.dtype), key) * key.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible[None], scores, -1e30), axis=-1)
    return sums("htw,whk->thk", weights.astype(value.dtype), value)


def mix_one(
    query: Float[Array, "head key"],
    key: Float[Array, "window head key"],
    value: Float[Array, "window head key"],
    visible: Bool[Array, " window"],
) -> Float[Array, "head key"]:
    """`mix` of one token; sums over each head are one product with ones, for all rows at once."""
    window, heads, width = key.shape
    each = (key.astype(jnp.float32) * query[None]).reshape(window, heads * width)
    ones = jnp.repeat(jnp.eye(heads), width, axis=0)
    scores = (each @ ones) * width**-0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e30), axis=0)
    return jnp.sum(weights[..., None] * value.astype(jnp.float32), axis=0)


class Attention(eqx.Module):
    """Multi-head self-attention over the last `window` tokens of one sequence."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    window: int = eqx.field(static=True)

    def _split(
        self, layer: Linear, x: Float[Array, "*axes embed"]
    ) -> Float[Array, "*axes head key"]:
        return layer(x).reshape(*x.shape[:-1], self.heads, -1)

    def _remember(
        self, x: Float[Array, "*axes token embed"], position: Int[Array, " token"]
    ) -> Ring:
        key, value = rotate(self._split(self.key, x), position), self._split(self.value, x)
        return Ring(key.astype(self.key.weight.dtype), value.astype(self.value.weight.dtype))

    def _ask(
        self, x: Float[Array, "*axes token embed"], position: Int[Array, "... token"]
    ) -> Float[Array, "*axes token head key"]:
        return rotate(self._split(self.query, x), position)

    def sequences(
        self,
        x: Float[Array, "row token embed"],
        start: Int[Array, " row"],
        asking: Int[Array, "row asking"] | None = None,
    ) -> tuple[Float[Array, "row asking embed"], Ring]:
        """Attend within each sequence, whose tokens before `start` are padding.

        Returns the tokens' keys and values too, which `ring` takes. With `asking` only the tokens
        at these places attend.
        """
        position = jnp.arange(x.shape[1])
        asks = position[None] if asking is None else asking
        query = self._ask(x if asking is None else at_places(x, asking), asks)
        fresh = self._remember(x, position)
        age = asks[:, :, None] - position[None, None]
        near = (age >= 0) & (age < self.window)
        visible = near & (position[None] >= start[:, None])[:, None]
        y = jax.vmap(mix)(query, fresh.key, fresh.value, visible)
        return self.out(y.reshape(*y.shape[:2], -1)), fresh

    def ring(self, past: Ring, tokens: int) -> Ring:
        """The ring after the first `tokens` of the keys and values of a sequence."""
        kept = jnp.arange(max(0, tokens - self.window), tokens)
        place = lambda each: (
            jnp.zeros((self.window, *each.shape[1:]), each.dtype)
            .at[kept % self.window]
            .set(each[kept])
        )
        return jax.tree.map(place, past)

    def step(
        self,
        x: Float[Array, "row embed"],
        ring: Ring,
        position: Int[Array, " row"],
        start: Int[Array, " row"],
    ) -> tuple[Float[Array, "row embed"], Ring]:
        """Attend from one more token of each row, at `position`, and put it into the row's ring."""
        query, fresh = self._ask(x, position), self._remember(x, position)
        y, ring = jax.vmap(self._next)(query, fresh, ring, position, start)
        return self.out(y.reshape(x.shape)), ring

    def _next(
        self,
        query: Float[Array, "head key"],
        fresh: Ring,
        ring: Ring,
        position: Int[Array, ""],
        start: Int[Array, ""],
    ) -> tuple[Float[Array, "head key"], Ring]:
        """What one row's newest token sees, and the ring with that token in it.

        `fresh` holds that token's key and value alone, without an axis for places.
        """
        here = jnp.arange(self.window) == position % self.window
        put = lambda past, new: jnp.where(here[:, None, None], new[None], past)
        ring = jax.tree.map(put, ring, fresh)
        age = (position - jnp.arange(self.window)) % self.window
        visible = position - age >= start
        return mix_one(query, ring.key, ring.value, visible), ring


def attention(embed: int, heads: int, window: int, *, key: PRNGKeyArray) -> Attention:
    """Fresh attention with `heads` heads of `embed / heads` entries each."""
    query, keys, value, out = jax.random.split(key, 4)
    make = lambda k: linear(embed, embed, key=k)
    return Attention(make(query), make(keys), make(value), make(out), heads, window)
