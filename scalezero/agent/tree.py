"""The trees of a search, one for each row, which grow by several leaves at once.

The nodes of all trees stand in one array: the roots first, then the leaves of one pass after
another, a place for each lane of each row. So new nodes are written as one block, and a node's
number is its place. A node is worth the mean of its own guess and of all that came back through its
actions, and that is read off its actions' table, so no sum has two owners.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from scalezero.agent.policies import IMPOSSIBLE

NOWHERE = jnp.iinfo(jnp.int32).max  # an index that writes nothing


class Actions(eqx.Module):
    """What is known of the actions of nodes, or of one node of each lane."""

    guess: Float[Array, "*axes"]  # the model's own value of the node
    prior: Float[Array, "*axes candidate"]  # logits
    value: Float[Array, "*axes candidate"]  # of each action; meaningless where never visited
    visits: Int[Array, "*axes candidate"]

    @property
    def exists(self) -> Bool[Array, "*axes candidate"]:
        """Which candidates there are."""
        return self.prior > IMPOSSIBLE / 2

    @property
    def worth(self) -> Float[Array, "*axes"]:
        """The mean of the guess and of all that came back."""
        returns = jnp.sum(self.visits.astype(jnp.float32) * self.value, axis=-1)
        return (self.guess + returns) / (1 + jnp.sum(self.visits, axis=-1)).astype(jnp.float32)


class Tree(eqx.Module):
    """All nodes of all rows; `state` is what the model needs to go on from each of them."""

    actions: Actions
    child: Int[Array, "node candidate"]  # the node that an action leads to; 0: none yet
    reward: Float[Array, " node"]  # of the step that leads to the node
    parent: Int[Array, " node"]
    choice: Int[Array, " node"]  # the parent's action that leads to the node
    state: PyTree
    rows: int = eqx.field(static=True)

    def at(self, node: Int[Array, " lane"]) -> Actions:
        """What is known of the actions of these nodes."""
        return jax.tree.map(lambda x: x[node], self.actions)


def planted(
    guess: Float[Array, " row"], prior: Float[Array, "row candidate"], state: PyTree, leaves: int
) -> Tree:
    """Trees that are roots alone, with room for `leaves` nodes more."""
    rows, candidates = prior.shape
    size = rows + leaves
    room = lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype).at[:rows].set(x)
    table = lambda kind: jnp.zeros((size, candidates), kind)
    return Tree(
        Actions(room(guess), room(prior), table(jnp.float32), table(jnp.int32)),
        table(jnp.int32),
        jnp.zeros(size),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, jnp.int32),
        jax.tree.map(room, state),
        rows,
    )


def descend(
    tree: Tree,
    node: Int[Array, " lane"],
    choice: Int[Array, " lane"],
    choose: Callable[[Actions], Int[Array, " lane"]],
) -> tuple[Int[Array, " lane"], Int[Array, " lane"]]:
    """From each lane's node by its choice, then as `choose` says, to an action never tried.

    Returns the node and that action of it.
    """

    def deeper(path: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        node, choice, child = path
        on = child > 0
        node = jnp.where(on, child, node)
        choice = jnp.where(on, choose(tree.at(node)), choice)
        return node, choice, jnp.where(on, tree.child[node, choice], 0)

    path = node, choice, tree.child[node, choice]
    node, choice, _ = jax.lax.while_loop(lambda path: jnp.any(path[2] > 0), deeper, path)
    return node, choice


class Leaves(eqx.Module):
    """What a pass adds: a new node for each lane, all of which came down to different actions."""

    parent: Int[Array, " lane"]
    choice: Int[Array, " lane"]  # the parent's action that leads there
    live: Bool[Array, " lane"]  # the others fill their place, and nothing leads to them
    reward: Float[Array, " lane"]  # of the step that leads there
    guess: Float[Array, " lane"]  # the model's own value
    prior: Float[Array, "lane candidate"]
    state: PyTree


def grown(
    tree: Tree, place: Int[Array, ""], leaves: Leaves, discount: Float[Array, " lane"]
) -> Tree:
    """`tree` with new leaves, the first of them at `place` behind the roots, and their news told.

    Lanes of one row must have come down through different actions of its root, so that no two of
    them tell the same node; the worth of a root is not kept, but read off its actions.
    """
    first = tree.rows + place
    put = lambda whole, new: jax.lax.dynamic_update_slice_in_dim(whole, new, first, 0)
    number = first + jnp.arange(len(leaves.parent), dtype=jnp.int32)
    known = tree.actions
    above = jnp.where(leaves.live, leaves.parent, NOWHERE)
    tree = Tree(
        Actions(
            put(known.guess, leaves.guess),
            put(known.prior, leaves.prior),
            known.value,
            known.visits,
        ),
        tree.child.at[above, leaves.choice].set(number, mode="drop"),
        put(tree.reward, leaves.reward),
        put(tree.parent, leaves.parent),
        put(tree.choice, leaves.choice),
        jax.tree.map(put, tree.state, leaves.state),
        tree.rows,
    )
    return eqx.tree_at(lambda tree: tree.actions, tree, _told(tree, number, leaves.live, discount))


def _told(
    tree: Tree,
    node: Int[Array, " lane"],
    live: Bool[Array, " lane"],
    discount: Float[Array, " lane"],
) -> Actions:
    """What is known after the news of these nodes has gone all the way up."""

    def up(news: tuple[Actions, Array, Array]) -> tuple[Actions, Array, Array]:
        known, node, on = news
        parent, choice = tree.parent[node], tree.choice[node]
        worth = tree.reward[node] + discount * jax.tree.map(lambda x: x[node], known).worth
        above = jnp.where(on, parent, NOWHERE)
        value = known.value.at[above, choice].set(worth, mode="drop")
        visits = known.visits.at[above, choice].add(1, mode="drop")
        known = Actions(known.guess, known.prior, value, visits)
        return known, jnp.where(on, parent, node), on & (parent >= tree.rows)

    return jax.lax.while_loop(lambda news: jnp.any(news[2]), up, (tree.actions, node, live))[0]
