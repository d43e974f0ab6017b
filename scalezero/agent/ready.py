"""A world as searches read it: the same outputs, but for rounding."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from scalezero.agent.stages import merge, stage
from scalezero.agent.world import World
from scalezero.nets.cpu import units
from scalezero.nets.linear import narrowed

CACHED_BYTES = 32 << 20  # weights up to this stay in a CPU's caches


def uncached(backbone: PyTree, precision: str) -> bool:
    """Whether matrices as narrow as searches read them overflow a CPU's caches."""
    width = jnp.dtype(precision).itemsize
    return width * sum(leaf.size for leaf in jax.tree.leaves(backbone)) > CACHED_BYTES


def ready(world: World) -> World:
    """`world` with adapters folded in, and matrices as products read them fastest.

    They are as narrow as products take them; and on a CPU the experts of a large backbone stand
    apart, which copies these. A search does all this itself; who searches often with one world
    saves every search the work, and decides the same bit for bit.
    """
    if world.precision != "float32" or stage(world):
        world = _merged(world)
    if not _parts_experts(world):
        return world
    return eqx.tree_at(lambda world: world.backbone, world, world.backbone.apart())


@eqx.filter_jit
def _merged(world: World) -> World:
    parts = lambda world: (world.backbone, world.image)
    whole = merge(world)
    narrow = narrowed(parts(whole), world.precision)
    return eqx.tree_at(parts, whole, narrow, is_leaf=lambda part: part is None)


def _parts_experts(world: World) -> bool:
    """Whether to set experts apart: stacks on a CPU, too large for its caches.

    With AMX narrow ones are slower apart where tokens are few.
    """
    if jax.default_backend() != "cpu" or (world.precision != "float32" and units() == "amx"):
        return False
    return world.backbone.can_part and uncached(world.backbone, world.precision)
