"""Dynamic parameter scaling: grow the model stage by stage, and say what trains at each.

The stage is not a counter anywhere: it is the number of adapters in the tree. Nothing else in the
package freezes, unfreezes, names or counts adapters.

Source: ScaleZero, Section 4.2 (arXiv:2509.07945). Differs: growing keeps the function bit for bit,
and the moments of all that goes on training; frozen leaves have no moments.
"""

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from scalezero.agent.world import World
from scalezero.nets.experts import Experts
from scalezero.nets.linear import Linear, dropped, merged, with_adapter
from scalezero.nets.norms import RunningNorm


def stage(world: World) -> int:
    """How many adapters each adapted layer has: 0 before anything has grown."""
    return max(len(layer.adapters) for layer in _linears(world.backbone))


def grow(
    world: World,
    rank: int,
    scale: float,
    *,
    strengths: bool,
    encoder: bool,
    dropout: float = 0.0,
    key: PRNGKeyArray,
) -> World:
    """`world` one stage later: attention and routed experts get one more adapter each.

    The function computed is unchanged; only what can be learnt is.

    Args:
        world: What grows.
        rank: Of the adapters.
        scale: The factor of each correction (LoRA's alpha / rank).
        strengths: Whether those of base and older adapters can be learnt.
        encoder: Whether the encoder of pictures grows too.
        dropout: The share of its inputs that the new adapter does not see while it learns.
        key: Consumed.
    """
    old = _adapted(world, encoder)
    keys = jax.random.split(key, len(old))
    new = [
        with_adapter(layer, rank, scale, learnt=strengths, key=each, dropout=dropout)
        for layer, each in zip(old, keys, strict=True)
    ]
    return eqx.tree_at(lambda tree: _adapted(tree, encoder), world, new)


def with_dropout(world: World, *, key: PRNGKeyArray) -> World:
    """`world` as one update sees it: each adapter without some of its inputs.

    Source: LoRA's dropout (arXiv:2106.09685). Differs: one mask for all tokens of an update.
    """
    keys = iter(jax.random.split(key, max(1, len(_linears(world)))))
    hides = lambda node: isinstance(node, Linear) and any(a.dropout for a in node.adapters)
    drop = lambda node: dropped(node, key=next(keys)) if hides(node) else node
    return jax.tree.map(drop, world, is_leaf=hides)


def learnt(world: World) -> PyTree[bool]:
    """Which leaves ever follow gradients: all but running statistics."""
    return _mask(world, frozen=False)


def trainable(world: World) -> PyTree[bool]:
    """Which leaves the optimiser may move now.

    A part that has grown is frozen, normalisation and routers included, but for its newest
    adapters and the strengths of what is older. Encoders that have not grown, action tokens and
    heads always train.
    """
    mask = learnt(world)
    for part in (lambda tree: tree.backbone, lambda tree: tree.image):
        if any(layer.adapters for layer in _linears(part(world))):
            mask = eqx.tree_at(part, mask, _mask(part(world), frozen=True))
    return mask


def graft(old: PyTree, new: PyTree) -> PyTree:
    """`new` with the leaves of `old` that have the same path: what survives keeps its moments."""
    kept = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}
    pick = lambda path, leaf: kept.get(jax.tree_util.keystr(path), leaf)
    return jax.tree_util.tree_map_with_path(pick, new)


def merge(world: World) -> World:
    """`world` with all adapters folded into the weights: the same outputs, to rounding."""
    is_grown = lambda node: isinstance(node, Linear) and bool(node.adapters)
    fold = lambda node: merged(node) if is_grown(node) else node
    return jax.tree.map(fold, world, is_leaf=is_grown)


def _adapted(world: World, encoder: bool) -> list[Linear]:
    """The layers that grow: queries, keys, values and outputs of attention, and routed experts."""
    parts: list[PyTree] = []
    for block in world.backbone.blocks:
        forward = block.forward
        parts += [block.attention, forward.routed if isinstance(forward, Experts) else forward]
    return _linears([*parts, world.image if encoder else None])


def _linears(tree: PyTree) -> list[Linear]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Linear))
    return [leaf for leaf in leaves if isinstance(leaf, Linear)]


def _mask(tree: PyTree, *, frozen: bool) -> PyTree[bool]:
    """Which leaves train: in a frozen tree, only those of adapted layers that `_newest` names."""

    def of(node: PyTree) -> PyTree[bool]:
        if isinstance(node, RunningNorm):
            return jax.tree.map(lambda _: False, node)
        mask = jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and not frozen, node)
        return _newest(node, mask) if isinstance(node, Linear) and node.adapters else mask

    return jax.tree.map(of, tree, is_leaf=lambda node: isinstance(node, Linear | RunningNorm))


def _newest(layer: Linear, mask: Linear) -> Linear:
    """The newest adapter trains, and the strengths of base and older adapters."""
    *older, _ = layer.adapters
    moving = lambda m: [
        m.adapters[-1].down,
        m.adapters[-1].up,
        *([] if layer.alpha is None else [m.alpha, *(a.alpha for a in m.adapters[: len(older)])]),
    ]
    return eqx.tree_at(moving, mask, replace_fn=lambda _: True)
