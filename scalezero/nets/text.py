"""From a text to a vector: a sentence encoder of BERT's kind, and what brings it to latent width.

A text is the numbers of its word pieces, `int32[piece]`, filled up with `PAD`, which nothing sees.

Sources: BERT, arXiv:1810.04805; its sentence form, mean-pooled and normalised, arXiv:1908.10084.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from scalezero.nets.attention import mix
from scalezero.nets.linear import Linear, linear
from scalezero.nets.norms import LayerNorm, layer_norm

PAD = 0  # the piece that is none
EPSILON = 1e-12  # of BERT's layer norms


class BertBlock(eqx.Module):
    """One post-norm block; every piece sees every piece."""

    mix_in: Linear  # query, key and value
    mix_out: Linear
    after_attention: LayerNorm
    first: Linear
    last: Linear
    after_forward: LayerNorm
    heads: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "piece embed"], visible: Bool[Array, "piece piece"]
    ) -> Float[Array, "piece embed"]:
        """Attend, then feed forward, each with its residual and then a norm."""
        joint = jax.vmap(self.mix_in)(x)
        query, key, value = jnp.moveaxis(joint.reshape(len(x), 3, self.heads, -1), 1, 0)
        mixed = jax.vmap(self.mix_out)(mix(query, key, value, visible).reshape(x.shape))
        x = jax.vmap(self.after_attention)(x + mixed)
        inner = jax.nn.gelu(jax.vmap(self.first)(x), approximate=False)
        return jax.vmap(self.after_forward)(x + jax.vmap(self.last)(inner))


class Bert(eqx.Module):
    """A sentence encoder: texts that mean alike get vectors that point alike."""

    words: Float[Array, "lexicon embed"]
    places: Float[Array, "place embed"]
    before: LayerNorm
    blocks: tuple[BertBlock, ...]

    def __call__(self, text: Int[Array, " piece"]) -> Float[Array, " embed"]:
        """The vector of length 1 that stands for `text`; that of no pieces at all is 0."""
        real = text != PAD
        x = jax.vmap(self.before)(self.words[text] + self.places[: len(text)])
        visible = jnp.broadcast_to(real[None, :], (len(text), len(text)))
        for block in self.blocks:
            x = block(x, visible)
        total = jnp.sum(jnp.where(real[:, None], x.astype(jnp.float32), 0), axis=0)
        return total * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(total)), 1e-24))


class BertSize(NamedTuple):
    """The size of a sentence encoder."""

    lexicon: int  # word pieces it knows
    places: int  # the most pieces of a text
    embed: int  # width of a piece, and of the result
    hidden: int  # width inside the feed-forward halves
    layers: int
    heads: int  # must divide `embed`


MINILM = BertSize(lexicon=30_522, places=512, embed=384, hidden=1536, layers=6, heads=12)


def bert(size: BertSize, *, key: PRNGKeyArray) -> Bert:
    """A fresh sentence encoder."""
    words, place, blocks = jax.random.split(key, 3)
    embed = size.embed

    def block(k: PRNGKeyArray) -> BertBlock:
        mix_in, mix_out, first, last = jax.random.split(k, 4)
        return BertBlock(
            linear(embed, 3 * embed, key=mix_in),
            linear(embed, embed, key=mix_out),
            layer_norm(embed, EPSILON),
            linear(embed, size.hidden, key=first),
            linear(size.hidden, embed, key=last),
            layer_norm(embed, EPSILON),
            size.heads,
        )

    return Bert(
        0.02 * jax.random.normal(words, (size.lexicon, embed)),
        0.02 * jax.random.normal(place, (size.places, embed)),
        layer_norm(embed, EPSILON),
        tuple(block(k) for k in jax.random.split(blocks, size.layers)),
    )


class TextEncoder(eqx.Module):
    """Linear, layer norm, GELU, linear: the embedding of a text becomes one token."""

    first: Linear
    norm: LayerNorm
    last: Linear

    def __call__(self, sentence: Float[Array, " size"]) -> Float[Array, " embed"]:
        """The vector that stands for a text with this embedding, not yet normalised as a latent."""
        return self.last(jax.nn.gelu(self.norm(self.first(sentence))))


def text_encoder(size: int, hidden: int, embed: int, *, key: PRNGKeyArray) -> TextEncoder:
    """A fresh encoder of texts whose embeddings have `size` entries."""
    first, last = jax.random.split(key)
    return TextEncoder(
        linear(size, hidden, key=first),
        layer_norm(hidden),
        linear(hidden, embed, key=last),
    )
