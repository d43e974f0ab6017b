"""Planning: one compiled tree search over all rows of all tasks.

The bridge to mctx. A node's embedding holds the tokens' keys and values, and the actions that may
be tried there; a model step is two tokens, the action and the predicted latent.

Sources: Gumbel MuZero (openreview.net/forum?id=bERaNdoegnO), MuZero's pUCT (arXiv:1911.08265),
Sampled MuZero (arXiv:2104.06303), all as implemented by mctx.
"""

# mctx declares its arrays as a union that no index fits.
# pyright: reportArgumentType=false

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import mctx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scalezero.agent.policies import IMPOSSIBLE
from scalezero.agent.records import History, Listing, Plan
from scalezero.agent.world import SlotWorld
from scalezero.config import SearchSettings
from scalezero.nets.transformer import Cache


class Node(eqx.Module):
    """What the tree keeps at each node, `row` being all rows of all slots."""

    cache: Cache
    actions: Float[Array, "row candidate action"]


def plan(
    world: SlotWorld,
    history: History,
    listing: Listing,
    settings: SearchSettings,
    explore: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Plan:
    """Search from the newest observation of every row.

    Args:
        world: Bound to the slots of `history`.
        history: With the newest latent in, and no action for it yet.
        listing: What the newest pages list; it stays available at every node.
        settings: Which search, and how long.
        explore: 1 while collecting; 0 for the best known action without any noise.
        key: Consumed.
    """
    root_key, noise_key, search_key = jax.random.split(key, 3)
    slots, rows = history.length.shape
    flat = lambda x: x.reshape(slots * rows, *x.shape[2:])
    deep = lambda x: x.reshape(slots, rows, *x.shape[1:])
    discount = jnp.repeat(world.table.discount, rows)

    feature, cache = world.root(history)
    actions, prior = world.policy(feature, listing).propose(explore, key=root_key)
    if settings.kind == "puct":
        weight = settings.noise_fraction * explore
        prior = with_noise(prior, weight, settings.noise_alpha, key=noise_key)
    root = mctx.RootFnOutput(
        prior_logits=flat(prior),
        value=flat(world.value(feature)),
        embedding=Node(cache, flat(actions)),
    )

    def recurrent(model: tuple[SlotWorld, Listing], key: PRNGKeyArray, choice: Array, node: Node):
        world, listing = model
        action = _take(node.actions, choice)
        feature, cache = world.step(world.action_token(deep(action), listing), node.cache)
        reward, latent = world.reward(feature), world.next_latent(feature)
        feature, cache = world.step(latent, cache)
        actions, prior = world.policy(feature, listing).propose(explore, key=key)
        step = mctx.RecurrentFnOutput(
            reward=flat(reward),
            discount=discount,
            prior_logits=flat(prior),
            value=flat(world.value(feature)),
        )
        return step, Node(cache, flat(actions))

    invalid = (root.prior_logits <= IMPOSSIBLE / 2).astype(jnp.int32)
    with jax.numpy_dtype_promotion("standard"):  # mctx mixes integer and float
        model = world, listing
        output = _search(model, search_key, root, recurrent, invalid, settings, explore)
    choice = output.action
    if settings.kind == "puct":  # mctx draws; without exploration the most visited is taken
        most = jnp.argmax(output.action_weights, axis=-1).astype(choice.dtype)
        choice = jnp.where(explore > 0, choice, most)
    return Plan(
        action=deep(_take(root.embedding.actions, choice)),
        candidates=actions,
        policy=deep(output.action_weights),
        value=deep(output.search_tree.node_values[:, 0]),
    )


def _take(
    actions: Float[Array, "row candidate action"], choice: Int[Array, " row"]
) -> Float[Array, "row action"]:
    """Of each row's candidates, the chosen one."""
    return jnp.take_along_axis(actions, choice[:, None, None], axis=1)[:, 0]


def _search(model, key, root, recurrent, invalid, settings: SearchSettings, explore):
    """mctx's policy of the kind that `settings` ask for."""
    match settings.kind:
        case "gumbel":
            return mctx.gumbel_muzero_policy(
                model,
                key,
                root,
                recurrent,
                settings.simulations,
                invalid,
                qtransform=functools.partial(
                    completed_values,
                    value_scale=settings.value_scale,
                    visit_offset=settings.visit_offset,
                    value_floor=settings.value_floor,
                ),
                max_num_considered_actions=settings.considered,
                gumbel_scale=explore,
            )
        case "puct":
            return mctx.muzero_policy(
                model,
                key,
                root,
                recurrent,
                settings.simulations,
                invalid,
                dirichlet_fraction=0.0,
                temperature=settings.temperature,
            )


def completed_values(
    tree: mctx.Tree,
    node: Int[Array, ""] | int,
    *,
    value_scale: float,
    visit_offset: float,
    value_floor: float = 0.0,
) -> Float[Array, " candidate"]:
    """Values of a node's actions, those not visited completed, scaled for the policy.

    Differs from mctx's `qtransform_completed_by_mix_value`: candidates that do not exist have no
    part in the rescaling to [0, 1], so padding cannot matter; and values that lie closer together
    than `value_floor` are rescaled to less than that, so that where nothing is known yet, the
    policy is not taught noise.

    Source: Gumbel MuZero, Appendix D.
    """
    values, prior = tree.qvalues(node), tree.children_prior_logits[node]
    visits = tree.children_visits[node].astype(prior.dtype)
    exists, visited = prior > IMPOSSIBLE / 2, visits > 0
    weight = jnp.where(visited, jax.nn.softmax(prior) + jnp.finfo(prior.dtype).tiny, 0.0)
    average = jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), jnp.finfo(prior.dtype).tiny)
    total = jnp.sum(visits)
    mixed = (tree.raw_values[node] + total * average) / (total + 1)
    values = jnp.where(visited, values, mixed)
    low = jnp.min(jnp.where(exists, values, jnp.inf))
    high = jnp.max(jnp.where(exists, values, -jnp.inf))
    unit = (values - low) / jnp.maximum(high - low, max(value_floor, 1e-8))
    scale = (visit_offset + jnp.max(visits)) * value_scale
    return jnp.where(exists, scale * unit, 0.0)


def with_noise(
    logits: Float[Array, "*axes candidate"],
    weight: Float[Array, ""],
    alpha: float,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "*axes candidate"]:
    """The logits of a prior mixed with Dirichlet noise over the candidates that exist.

    Source: AlphaZero (arXiv:1712.01815). Differs from mctx's own noise, part of which falls on
    padding.
    """
    exists = logits > IMPOSSIBLE / 2
    gamma = jnp.where(exists, jax.random.gamma(key, alpha, logits.shape), 0.0)
    noise = gamma / jnp.maximum(jnp.sum(gamma, axis=-1, keepdims=True), 1e-30)
    mixed = (1 - weight) * jax.nn.softmax(logits) + weight * noise
    return jnp.where(exists, jnp.log(jnp.maximum(mixed, 1e-30)), IMPOSSIBLE)
