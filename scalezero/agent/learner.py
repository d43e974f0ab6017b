"""What is learnt, and one update of it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from scalezero.agent.losses import Metrics, loss
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.records import Batch
from scalezero.agent.stages import graft, learnt, trainable, with_dropout
from scalezero.agent.traced import traced_once
from scalezero.agent.world import World
from scalezero.config import LearnSettings


class Learner(eqx.Module):
    """All that learning changes."""

    world: World
    target: World  # the slow average of `world`
    moments: optax.OptState
    updates: Int[Array, ""]


def learner(world: World, rule: Optimiser) -> Learner:
    """A learner that has learnt nothing yet."""
    copy = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, world)
    moments = rule.init(eqx.filter(world, trainable(world)))
    return Learner(world, copy, moments, jnp.zeros((), jnp.int32))


def grown(state: Learner, rule: Optimiser, grow: Callable[[World], World]) -> Learner:
    """The learner one stage later: world and target grow alike, moments that live on are kept."""
    world, target = grow(state.world), grow(state.target)
    fresh = rule.init(eqx.filter(world, trainable(world)))
    return Learner(world, target, graft(state.moments, fresh), state.updates)


def update(
    state: Learner,
    batch: Batch,
    task: Int[Array, " slot"],
    library: Shaped[Array, "text content"],
    settings: LearnSettings,
    rule: Optimiser,
) -> tuple[Learner, Metrics]:
    """One gradient step on one batch."""
    params, rest = eqx.partition(state.world, trainable(state.world))
    key = jax.random.fold_in(jax.random.key(0), state.updates)

    def objective(params: World) -> tuple[Float[Array, ""], Metrics]:
        world = with_dropout(eqx.combine(params, rest), key=key)
        return loss(world, state.target, batch, task, library, settings)

    gradient, metrics = jax.grad(objective, has_aux=True)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer and float
        step, moments = rule.update(gradient, state.moments, params)
    params = eqx.apply_updates(params, step)
    world = eqx.combine(params, rest).watch(batch, task)
    slow = lambda new, old: old + settings.target_rate * (new - old)
    fast, statistics = eqx.partition(world, learnt(world))
    followed = jax.tree.map(slow, fast, eqx.filter(state.target, learnt(world)))
    target = eqx.combine(followed, statistics)
    tasks = state.world.tasks.tasks
    metrics["gradient/norm"] = jnp.full(tasks, optax.tree.norm(gradient))
    return Learner(world, target, moments, state.updates + 1), metrics


def update_many(
    state: Learner,
    batches: Batch,
    task: Int[Array, "batch slot"],
    library: Shaped[Array, "text content"],
    settings: LearnSettings,
    rule: Optimiser,
) -> tuple[Learner, Metrics]:
    """One update for each of a stack of batches, in order; the metrics are their means.

    The metric `sound` counts each task's updates before its first loss that is not finite. Of
    `state`, only the world may be used afterwards (an actor may still plan with it); the memory of
    the rest is given to the new state.
    """
    given = _given(state, batches, task, library)
    (rest, world), metrics = _update_many(*given, settings, rule)
    return _with_world(rest, world), metrics


def compile_for(
    state: Learner,
    batches: Batch,
    task: Int[Array, "batch slot"],
    library: Shaped[Array, "text content"],
    settings: LearnSettings,
    rule: Optimiser,
) -> None:
    """Compile `update_many` for such arguments, which it leaves alone; the next call finds it."""
    _update_many.lower(*_given(state, batches, task, library), settings, rule).compile()


def _given(
    state: Learner, batches: Batch, task: Array, library: Array
) -> tuple[tuple[World, Batch, Array, Array], Learner]:
    """What an update keeps, and what it may write over."""
    return (state.world, batches, task, library), _with_world(state, None)


def _with_world(state: Learner, world: World | None) -> Learner:
    return eqx.tree_at(lambda s: s.world, state, world, is_leaf=lambda x: x is None)


@eqx.filter_jit(donate="all-except-first")
@traced_once(like=lambda kept, rest, *_: (rest, kept[0]))
def _update_many(
    kept: tuple[World, Batch, Int[Array, "batch slot"], Shaped[Array, "text content"]],
    rest: Learner,
    settings: LearnSettings,
    rule: Optimiser,
) -> tuple[tuple[Learner, World], Metrics]:
    # What is given comes back first: memory goes to the first result of its shape, and would have
    # to be copied before it is written over as something else.
    world, batches, task, library = kept
    arrays, static = eqx.partition(_with_world(rest, world), eqx.is_array)

    def body(arrays, each):
        state, metrics = update(eqx.combine(arrays, static), *each, library, settings, rule)
        return eqx.filter(state, eqx.is_array), metrics

    arrays, metrics = jax.lax.scan(body, arrays, (batches, task))
    finite = jnp.isfinite(metrics["loss/total"]).astype(jnp.int32)
    sound = jnp.sum(jnp.cumprod(finite, axis=0), axis=0)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
    state = eqx.combine(arrays, static)
    metrics = mean | {"sound": sound.astype(jnp.float32)}
    return (_with_world(state, None), state.world), metrics
