"""Encoders of pictures: a vision transformer (default) and a residual network.

Both take one `uint8` picture and return one vector. Sources: ViT, arXiv:2010.11929 (ScaleZero's
choice); the residual network is UniZero's (arXiv:2406.10667, Appendix B). Differs: position and
class tables start at σ = 0.02 instead of 1, and there is no dropout.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt8

from scalezero.nets.attention import mix
from scalezero.nets.linear import Linear, Mlp, linear, mlp
from scalezero.nets.norms import LayerNorm, layer_norm


class VitBlock(eqx.Module):
    """One pre-norm block of a vision transformer; every patch sees every patch."""

    before_attention: LayerNorm
    mix_in: Linear
    mix_out: Linear
    before_forward: LayerNorm
    forward: Mlp
    heads: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "patch embed"], asking: int) -> Float[Array, "asking embed"]:
        """Attend, then feed forward, each with its residual: the first `asking` patches."""
        joint = jax.vmap(lambda p: self.mix_in(self.before_attention(p)))(x)
        query, key, value = jnp.moveaxis(joint.reshape(len(x), 3, self.heads, -1), 1, 0)
        visible = jnp.ones((asking, len(x)), bool)
        mixed = mix(query[:asking], key, value, visible).reshape(asking, -1)
        x = x[:asking] + jax.vmap(self.mix_out)(mixed)
        return x + jax.vmap(lambda p: self.forward(self.before_forward(p)))(x)


class Vit(eqx.Module):
    """A vision transformer read at its class token."""

    before_patch: LayerNorm
    embed_patch: Linear
    after_patch: LayerNorm
    class_token: Float[Array, " embed"]
    places: Float[Array, "patch embed"]
    blocks: tuple[VitBlock, ...]
    last: LayerNorm
    out: Linear
    patch: int = eqx.field(static=True)
    rematerialise: bool = eqx.field(static=True)

    def __call__(self, picture: UInt8[Array, "height width channel"]) -> Float[Array, " out"]:
        """The vector that stands for `picture`."""
        # Cut once, as bytes: on a CPU XLA would do it anew in each of the kernels that read them.
        patches = jax.lax.optimization_barrier(patches_of(picture, self.patch))
        pixels = patches.astype(jnp.float32) / 255
        x = jax.vmap(lambda p: self.after_patch(self.embed_patch(self.before_patch(p))))(pixels)
        x = jnp.concatenate([self.class_token[None], x]) + self.places
        for block in self.blocks:
            call = eqx.filter_checkpoint(block) if self.rematerialise else block
            x = call(x, 1 if block is self.blocks[-1] else len(x))  # of the last, the class alone
        return self.out(self.last(x[0]))


def patches_of(
    picture: Shaped[Array, "height width channel"], side: int
) -> Shaped[Array, "patch in"]:
    """The square patches of `picture`, row by row; in each, pixels by row, column and channel.

    `side` divides height and width. Lines of a patch are copied whole, which a CPU does faster than
    to turn axes.
    """
    height, width, channels = picture.shape
    lines = picture.reshape(height // side, side, width // side, side * channels)
    patches = jnp.concatenate([lines[:, line] for line in range(side)], axis=-1)
    return patches.reshape(-1, side * side * channels)


def vit(
    shape: tuple[int, ...],
    out: int,
    *,
    patch: int,
    embed: int,
    depth: int,
    heads: int,
    hidden: int,
    rematerialise: bool = False,
    key: PRNGKeyArray,
) -> Vit:
    """A fresh vision transformer for pictures of `shape` (height, width, channels).

    With `rematerialise`, a gradient computes what blocks hold anew instead of keeping it.
    """
    height, width, channels = shape
    pixels, patches = patch * patch * channels, (height // patch) * (width // patch)
    first, token, places, blocks, last = jax.random.split(key, 5)

    def block(k: PRNGKeyArray) -> VitBlock:
        mix_in, mix_out, forward = jax.random.split(k, 3)
        return VitBlock(
            layer_norm(embed),
            linear(embed, 3 * embed, bias=False, key=mix_in),
            linear(embed, embed, key=mix_out),
            layer_norm(embed),
            mlp(embed, hidden, embed, key=forward),
            heads,
        )

    return Vit(
        layer_norm(pixels),
        linear(pixels, embed, key=first),
        layer_norm(embed),
        0.02 * jax.random.normal(token, (embed,)),
        0.02 * jax.random.normal(places, (patches + 1, embed)),
        tuple(block(k) for k in jax.random.split(blocks, depth)),
        layer_norm(embed),
        linear(embed, out, key=last),
        patch,
        rematerialise,
    )


class Conv(eqx.Module):
    """A 3×3 convolution without bias, then a normalisation over the whole map."""

    kernel: Float[Array, "out in 3 3"]
    gain: Float[Array, "out 1 1"]
    shift: Float[Array, "out 1 1"]
    stride: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "channel height width"]
    ) -> Float[Array, "out height2 width2"]:
        """Convolve and normalise one map."""
        y = jax.lax.conv(x[None], self.kernel, (self.stride, self.stride), "SAME")[0]
        wide = y.astype(jnp.float32)
        centred = wide - jnp.mean(wide)
        unit = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred)) + 1e-5)
        return (unit * self.gain + self.shift).astype(x.dtype)


def conv(fan_in: int, fan_out: int, stride: int = 1, *, key: PRNGKeyArray) -> Conv:
    """A fresh convolution (He initialisation)."""
    kernel = jax.random.normal(key, (fan_out, fan_in, 3, 3)) * (2 / (9 * fan_in)) ** 0.5
    return Conv(kernel, jnp.ones((fan_out, 1, 1)), jnp.zeros((fan_out, 1, 1)), stride)


class Residual(eqx.Module):
    """Two convolutions around a skip; the skip has its own convolution where the size changes."""

    first: Conv
    second: Conv
    skip: Conv | None

    def __call__(
        self, x: Float[Array, "channel height width"]
    ) -> Float[Array, "out height2 width2"]:
        """Apply the block to one map."""
        y = self.second(jax.nn.gelu(self.first(x)))
        return jax.nn.gelu(y + (x if self.skip is None else self.skip(x)))


class ResNet(eqx.Module):
    """Convolutions down to an 8th of the height and width, residual blocks, one linear layer."""

    stem: Conv
    blocks: tuple[Residual, ...]
    last: LayerNorm
    out: Linear

    def __call__(self, picture: UInt8[Array, "height width channel"]) -> Float[Array, " out"]:
        """The vector that stands for `picture`."""
        x = jnp.moveaxis(picture.astype(self.out.weight.dtype) / 255, -1, 0)
        x = jax.nn.gelu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.out(self.last(x.reshape(-1)))


def resnet(
    shape: tuple[int, ...], out: int, *, channels: int, depth: int, key: PRNGKeyArray
) -> ResNet:
    """A fresh residual network with `depth` blocks at the lowest resolution."""
    height, width, colours = shape
    stem, last, *rest = jax.random.split(key, 2 + 4 + depth)

    def block(fan_in: int, fan_out: int, stride: int, k: PRNGKeyArray) -> Residual:
        first, second, skip = jax.random.split(k, 3)
        resized = stride > 1 or fan_in != fan_out
        return Residual(
            conv(fan_in, fan_out, stride, key=first),
            conv(fan_out, fan_out, key=second),
            conv(fan_in, fan_out, stride, key=skip) if resized else None,
        )

    half = channels // 2
    plan = [(half, half, 1), (half, channels, 2), (channels, channels, 1), (channels, channels, 2)]
    plan += [(channels, channels, 1)] * depth
    blocks = tuple(block(*sizes, k) for sizes, k in zip(plan, rest, strict=True))
    flat = channels * -(-height // 8) * -(-width // 8)
    return ResNet(
        conv(colours, half, 2, key=stem),
        blocks,
        layer_norm(flat),
        linear(flat, out, bias=False, key=last),
    )
