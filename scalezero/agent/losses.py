"""The losses of one update, from the world model and a batch to one number.

Every loss keeps its leading axes and is averaged in one place, `per_task`, so that a mask or a
weight is applied once and never twice.

Sources: UniZero, Eq. 3 and Appendix B (arXiv:2406.10667); ScaleZero, Section 4 (arXiv:2509.07945).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from scalezero.agent.records import Batch
from scalezero.agent.support import cross_entropy, squash, two_hot
from scalezero.agent.targets import ends, targets
from scalezero.agent.world import SIM_GROUP, World
from scalezero.config import LearnSettings
from scalezero.nets.experts import Routing
from scalezero.nets.norms import SimNorm

type Metrics = dict[str, Float[Array, " task"]]


def loss(
    world: World,
    target: World,
    batch: Batch,
    task: Int[Array, " slot"],
    library: Shaped[Array, "text content"],
    settings: LearnSettings,
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted loss, averaged over the tasks in the batch, and its parts for each task.

    Args:
        world: What learns.
        target: Its slow average; no gradient reaches it.
        batch: Windows of experience.
        task: Whose windows each slot holds.
        library: What the numbers of texts stand for.
        settings: Weights and horizons.
    """
    time, tasks = batch.policy.shape[2], world.tasks.tasks
    target = jax.lax.stop_gradient(target)
    bound = world.bind(task, len(batch.observation.vector), library)
    table = bound.table

    window = jax.tree.map(lambda x: x[:, :, :time], batch.observation)
    listing = bound.listing(window.text)
    token = bound.action_token(batch.action[:, :, :time], listing)
    seen = bound.unroll(bound.encode(window), token)
    policy = bound.policy(seen.at_latent, listing)

    latent, value = _look_ahead(target, batch, task, library)
    goal = jax.lax.stop_gradient(targets(batch, latent, value, table.discount, table.reward_scale))

    coded = lambda x: two_hot(squash(x), world.support)
    chosen = jnp.where(batch.valid, policy.log_prob(batch.candidates), 0.0)
    goal_policy = jnp.where(goal.decided[..., None], batch.policy, 0.0)
    next_latent = bound.next_latent(seen.at_action)
    reward, value = bound.reward_head(seen.at_action), bound.value_head(seen.at_latent)
    parts = {
        "latent": (_latent_loss(world, next_latent, goal.latent), goal.followed),
        "reward": (cross_entropy(reward, coded(goal.reward)), goal.rewarded),
        "value": (cross_entropy(value, coded(goal.value)), goal.valued),
        "policy": (-jnp.sum(goal_policy * chosen, axis=-1), goal.decided),
        "entropy": (policy.entropy(), goal.decided),
    }
    mean = {name: per_task(*part, task, tasks) for name, part in parts.items()}
    weight = settings.loss
    total = (
        weight.latent * mean["latent"]
        + weight.reward * mean["reward"]
        + weight.value * mean["value"]
        + weight.policy * (mean["policy"] - weight.entropy * mean["entropy"])
    )
    present = per_task(jnp.ones_like(goal.value), goal.valued, task, tasks)
    mean_total = jnp.sum(total) / jnp.maximum(jnp.sum(present), 1.0)
    mean_total = mean_total + _router_loss(seen.routing, batch.known[:, :, :time], settings)

    metrics = {f"loss/{name}": value for name, value in mean.items()}
    metrics["loss/total"] = total
    metrics["target/value"] = per_task(goal.value, goal.valued, task, tasks)
    metrics["target/policy_entropy"] = per_task(
        -jnp.sum(goal_policy * jnp.log(jnp.maximum(goal_policy, 1e-30)), axis=-1),
        goal.decided,
        task,
        tasks,
    )
    metrics["policy/sigma"] = per_task(
        jnp.mean(policy.sigma, axis=-1), goal.decided & ~policy.discrete, task, tasks
    )
    metrics |= _load(seen.routing, goal.decided, task, tasks)
    return mean_total, jax.lax.stop_gradient(metrics)


def per_task(
    loss: Float[Array, "slot row time"],
    mask: Bool[Array, "slot row time"],
    task: Int[Array, " slot"],
    tasks: int,
) -> Float[Array, " task"]:
    """Mean loss of each task over its unmasked steps; 0 for a task with none.

    Args:
        loss: Nats (or whatever the loss is in) for each step.
        mask: False where a step has nothing to say.
        task: Whose data each slot holds; a task may hold any number of slots.
        tasks: How many tasks there are.
    """
    by_task = lambda x: jax.ops.segment_sum(jnp.sum(x, (1, 2)), task, tasks)
    count = by_task(mask.astype(loss.dtype))
    return by_task(jnp.where(mask, loss, 0)) / jnp.maximum(count, 1)


def _look_ahead(
    target: World,
    batch: Batch,
    task: Int[Array, " slot"],
    library: Shaped[Array, "text content"],
) -> tuple[Float[Array, "slot row transition embed"], Float[Array, "slot row time"]]:
    """What the target network makes of the rows, and its value where each step's rewards end.

    No target reads the last row, to which no step's rewards reach.
    """
    time = batch.policy.shape[2]
    bound = target.bind(task, len(batch.observation.vector), library)
    seen = jax.tree.map(lambda x: x[:, :, :-1], batch.observation)
    latent = bound.encode(seen)
    token = bound.action_token(batch.action, bound.listing(seen.text))
    end = ends(batch.known, time)
    first = end[:, :, 0]
    value = bound.value(bound.later(latent, token, first, time))
    return latent, jnp.take_along_axis(value, end - first[:, :, None], axis=2)


def _latent_loss(
    world: World,
    predicted: Float[Array, "slot row time embed"],
    goal: Float[Array, "slot row time embed"],
) -> Float[Array, "slot row time"]:
    """Squared error of layer-normalised latents; KL of each simplex of SimNorm latents."""
    if isinstance(world.latent_norm, SimNorm):
        groups = lambda x: x.reshape(*x.shape[:-1], -1, SIM_GROUP) + 1e-6
        p, q = groups(goal), groups(predicted)
        return jnp.mean(jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=-1), axis=-1)
    return jnp.mean(jnp.square(predicted - goal), axis=-1)


def _router_loss(
    routing: tuple[Routing, ...], known: Bool[Array, "slot row time"], settings: LearnSettings
) -> Float[Array, ""]:
    """Load balance (arXiv:2101.03961, Eq. 4) and z-loss (arXiv:2202.08906, Eq. 5)."""
    total = jnp.zeros(())
    real = jnp.repeat(known, 2, axis=2).reshape(-1, 1)  # a step is two tokens
    count = jnp.maximum(jnp.sum(real.astype(jnp.float32)), 1)
    mean = lambda x: jnp.sum(jnp.where(real, x, 0.0), axis=0) / count
    for layer in routing:
        experts = layer.logits.shape[-1]
        logits = layer.logits.reshape(-1, experts)
        sent = mean(
            jnp.mean(jax.nn.one_hot(layer.chosen.reshape(len(logits), -1), experts), axis=1)
        )
        gate = mean(jax.nn.softmax(logits))
        total += settings.loss.balance * experts * jnp.sum(sent * gate)
        z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        total += settings.loss.router_z * mean(jnp.square(z))[0]
    return total


def _load(
    routing: tuple[Routing, ...],
    mask: Bool[Array, "slot row time"],
    task: Int[Array, " slot"],
    tasks: int,
) -> Metrics:
    """The share of each task's tokens that each layer sends to each expert."""
    metrics = {}
    for depth, layer in enumerate(routing):
        experts = layer.logits.shape[-1]
        sent = jnp.mean(jax.nn.one_hot(layer.chosen, experts), axis=-2)
        by_step = jnp.mean(sent.reshape(*mask.shape, 2, experts), axis=-2)
        for index in range(experts):
            share = per_task(by_step[..., index], mask, task, tasks)
            metrics[f"experts/layer{depth}/{index}"] = share
    return metrics
