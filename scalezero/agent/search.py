"""Planning: one compiled tree search over all rows of all tasks.

A search goes in passes. In each, every row has some lanes; each lane walks down its row's tree to
an action never tried, all of them are tried in one go through the model, and what they say is told
up the trees. Trying an action is two tokens, the action and the predicted latent.

Sources: Gumbel MuZero (openreview.net/forum?id=bERaNdoegnO), MuZero's pUCT (arXiv:1911.08265),
Sampled MuZero (arXiv:2104.06303). Differs: simulations that cannot learn from each other are made
at once (`halving`); and the nodes that a pass adds share their noise (`Policy.propose`).
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scalezero.agent.halving import Stretch, cheapest
from scalezero.agent.ready import uncached
from scalezero.agent.records import History, Listing, Plan
from scalezero.agent.rules import Gumbel, Puct, Rule, with_noise
from scalezero.agent.tree import Leaves, Tree, descend, grown, planted
from scalezero.agent.world import SlotWorld
from scalezero.config import SearchSettings
from scalezero.nets.transformer import Cache


class State(eqx.Module):
    """What the model keeps of each node: the tokens' keys and values, and what may be tried."""

    cache: Cache
    actions: Float[Array, "node candidate action"]


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
    root_key, noise_key, search_key, end_key = jax.random.split(key, 4)
    tree = sown(world, history, listing, settings, explore, key=root_key)
    roots = jnp.arange(tree.rows)
    if settings.kind == "puct":
        weight = settings.noise_fraction * explore
        noisy = with_noise(tree.at(roots).prior, weight, settings.noise_alpha, key=noise_key)
        prior = tree.actions.prior.at[roots].set(noisy)
        tree = eqx.tree_at(lambda tree: tree.actions.prior, tree, prior)
        rule: Rule = Puct(settings, explore)
    else:
        drawn = jax.random.gumbel(noise_key, tree.at(roots).prior.shape)
        rule = Gumbel(explore * drawn, settings)
    way = itinerary(world, settings, tree.rows)
    tree = searched(world, tree, rule, listing, way, explore, key=search_key)
    choice, improved = rule.decide(tree.at(roots), key=end_key)
    actions = tree.state.actions[roots]
    taken = jnp.take_along_axis(actions, choice[:, None, None], axis=1)[:, 0]
    deep = lambda x: x.reshape(*history.length.shape, *x.shape[1:])
    return Plan(deep(taken), deep(actions), deep(improved), deep(tree.at(roots).worth))


def sown(
    world: SlotWorld,
    history: History,
    listing: Listing,
    settings: SearchSettings,
    explore: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Tree:
    """The trees before the search: a root for every row, and room for what grows."""
    flat = lambda x: x.reshape(history.length.size, *x.shape[2:])
    feature, cache = world.root(history)
    actions, prior = world.policy(feature, listing).propose(explore, key=key)
    way = itinerary(world, settings, history.length.size)
    leaves = history.length.size * sum(each.passes * each.lanes for each in way)
    return planted(flat(world.value(feature)), flat(prior), State(cache, flat(actions)), leaves)


def itinerary(world: SlotWorld, settings: SearchSettings, rows: int) -> tuple[Stretch, ...]:
    """The passes that a search of so many rows takes at most, with the lanes of each row.

    What a pass costs whatever it holds, next to a lane, is on a CPU the reading of weights that no
    cache can hold. On an accelerator it is waiting, and the figure is a guess.
    """
    if settings.kind == "puct":
        return (Stretch(1, settings.simulations),)
    large = uncached(world.shared.backbone, world.shared.precision)
    overhead = (64 if large else 4) if jax.default_backend() == "cpu" else 512
    return cheapest(world.entrants(settings.considered), settings.simulations, rows, overhead)


def searched(
    world: SlotWorld,
    tree: Tree,
    rule: Rule,
    listing: Listing,
    way: tuple[Stretch, ...],
    explore: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> Tree:
    """`tree` after the whole search, which goes on to the end of `way` at most."""
    roots = jnp.arange(tree.rows)
    listing = jax.tree.map(lambda x: x[:, :, None], listing)  # one for all lanes of a row

    def one(lanes: int, carried: tuple[Array, PRNGKeyArray, Tree, Any]):
        place, key, tree, memory = carried
        key, propose_key = jax.random.split(key)
        owner, shape = jnp.repeat(roots, lanes), (len(world.table.discount), -1, lanes)
        laned = lambda x: x.reshape(*shape, *x.shape[1:])
        flat = lambda x: x.reshape(len(owner), *x.shape[3:])
        entry, memory = rule.enter(memory, tree.at(roots), lanes)
        node, choice = descend(tree, owner, entry.choice.reshape(-1), rule.below)
        action = laned(tree.state.actions[node, choice])
        cache = jax.tree.map(lambda x: x[node], tree.state.cache)
        feature, cache = world.step(world.action_token(action, listing), cache)
        reward, latent = world.reward(feature), world.next_latent(feature)
        feature, cache = world.step(latent, cache)
        actions, prior = world.policy(feature, listing).propose(
            explore, alike=True, key=propose_key
        )
        leaves = Leaves(
            parent=node,
            choice=choice,
            live=entry.live.reshape(-1),
            reward=flat(reward),
            guess=flat(world.value(feature)),
            prior=flat(prior),
            state=State(cache, flat(actions)),
        )
        discount = jnp.repeat(world.table.discount, len(owner) // shape[0])
        return place + len(owner), key, grown(tree, place, leaves, discount), memory

    carried, end = (jnp.zeros((), jnp.int32), key, tree, rule.start(tree.at(roots))), 0
    for lanes, passes in way:
        end += passes * lanes * tree.rows
        goes_on = lambda carried, end=end: (carried[0] < end) & rule.goes_on(carried[3])
        carried = jax.lax.while_loop(goes_on, functools.partial(one, lanes), carried)
    return carried[2]
