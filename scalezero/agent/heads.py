"""What each task has of its own: heads, encoders and action tables, bound to a batch's slots.

A batch is laid out as `slot row …`: every slot holds rows of one task, and which task is data, not
shape. So the mix of tasks can change at every update without recompiling, and a head is one
batched matrix product instead of a loop over tasks.
"""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scalezero.nets.linear import stack


class PerTask[Layer: eqx.Module](eqx.Module):
    """One layer for each task: every leaf has a leading `task` axis."""

    layers: Layer

    def bind(self, task: Int[Array, " slot"]) -> "PerSlot[Layer]":
        """The layers that a batch needs, gathered once. Gradients scatter back."""
        return PerSlot(jax.tree.map(lambda leaf: leaf[task], self.layers))


class PerSlot[Layer: eqx.Module](eqx.Module):
    """The layers of the tasks in one batch; nothing downstream needs a task number."""

    layers: Layer

    def __call__(self, x: Float[Array, "slot *axes in"]) -> Float[Array, "slot *axes out"]:
        """Apply to every vector the layer of its slot's task, which takes rows of them."""
        apply = lambda layer, each: layer(each.reshape(-1, each.shape[-1]))
        y = eqx.filter_vmap(apply)(self.layers, x)
        return y.reshape(*x.shape[:-1], y.shape[-1])


def per_task[Layer: eqx.Module](
    make: Callable[[PRNGKeyArray], Layer], tasks: int, *, key: PRNGKeyArray
) -> PerTask[Layer]:
    """Fresh layers, each from its own key."""
    return PerTask(stack(make, tasks, key=key))
