"""Matrix products whose operands may be narrow; whatever stands between them is float32."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCK = 32  # tokens that are turned together
# So many vectors at most meet a matrix of so many entries at least as columns, faster on a CPU.
FEW, LARGE = 64, 1 << 16  # in float32
FEW_NARROW, LARGE_NARROW = 128, 1 << 14


def product(
    matrix: Float[Array, "out in"], x: Float[Array, "*axes in"]
) -> Float[Array, "*axes out"]:
    """`matrix` times each vector, which follows its type; the result is float32.

    A narrow product is rounded to the matrix's type first (of few vectors on a CPU it is not), and
    so is its cotangent: so all three products of a gradient are narrow. On a CPU they are fast only
    if the vectors come on axes of `x` alone: of a `vmap` each member would make a whole matrix.
    """
    x = x.astype(matrix.dtype)
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:  # or XLA makes `x` and the product in one slow kernel; and so with its cotangent
        x = jax.lax.optimization_barrier(x)
    if x.ndim == 1 or not on_cpu:
        return _times(x, matrix).astype(jnp.float32)
    many = x.reshape(-1, x.shape[-1])
    if matrix.dtype == jnp.float32:
        few = len(many) <= FEW and matrix.size >= LARGE
        y = upright(matrix @ many.T) if few else _times(many, matrix)
    else:
        y = _narrow(len(many) <= FEW_NARROW and matrix.size >= LARGE_NARROW, matrix, many)
    return y.reshape(*x.shape[:-1], len(matrix))


def upright(columns: Float[Array, "*axes out token"]) -> Float[Array, "*axes token out"]:
    """Columns as rows again, turned after what made them.

    On a CPU XLA would make them rows at once, unless held off, which is slower for few of them.
    """
    if jax.default_backend() == "cpu":
        columns = jax.lax.optimization_barrier(columns)
    return jnp.swapaxes(columns, -1, -2)


def _times(
    x: Float[Array, "*axes in"], matrix: Float[Array, "out in"]
) -> Float[Array, "*axes out"]:
    """With vectors first, as XLA knows to make narrow products of many of them on a CPU."""
    return jax.lax.dot_general(x, matrix, (((x.ndim - 1,), (1,)), ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow(
    columns: bool, matrix: Float[Array, "out in"], x: Float[Array, "token in"]
) -> Float[Array, "token out"]:
    if not columns:
        return _times(x, matrix).astype(jnp.float32)
    # As a stack of one: XLA has a fast narrow product with columns for stacks alone.
    y = jnp.einsum("eoi,eti->eot", matrix[None], x[None], preferred_element_type=jnp.float32)
    return upright(y)[0]


def _narrow_forward(columns, matrix, x):
    return _narrow(columns, matrix, x), (matrix, x)


def _narrow_backward(columns, kept, slope):
    matrix, x = kept
    slope = slope.astype(matrix.dtype)
    return outer(slope[None], x[None])[0], slope @ matrix


_narrow.defvjp(_narrow_forward, _narrow_backward)


def outer(
    left: Float[Array, "expert token out"], right: Float[Array, "expert token in"]
) -> Float[Array, "expert out in"]:
    """Σ over tokens of left ⊗ right of each expert, in the type of both; the sums are float32."""
    if left.dtype == jnp.float32 or jax.default_backend() != "cpu":
        return jnp.einsum("eto,eti->eoi", left, right)
    return jnp.einsum("eot,eti->eoi", _turned(left), right)


def _turned(x: Float[Array, "expert token out"]) -> Float[Array, "expert out token"]:
    """`x` with its last axes exchanged by a loop over blocks of tokens that a core's cache holds.

    A CPU's units for narrow products want the left side turned. XLA leaves a turn that it sees as
    it is, and makes a float32 product; a loop it does not see through.
    """
    count, tokens, width = x.shape
    least = 2 if count == 1 else 1  # a loop of one block would be no loop
    room = BLOCK * max(least, -(-tokens // BLOCK))
    blocks = jnp.pad(x, ((0, 0), (0, room - tokens), (0, 0))).reshape(-1, BLOCK, width)
    turned = jax.lax.map(jnp.transpose, blocks).reshape(count, -1, width, BLOCK)
    return jnp.moveaxis(turned, 1, 2).reshape(count, width, room)[:, :, :tokens]
