"""Tree search in plain Python: slow, readable, and written from the papers.

A node is an object, a tree is nodes that hold nodes, and every rule is a function of one node. What
the package does with compiled arrays must agree with this.

Sources: Gumbel MuZero (openreview.net/forum?id=bERaNdoegnO), Sections 2-5 and Appendix D; MuZero
(arXiv:1911.08265), Appendix B. Where these leave something open, mctx's answer is taken, and said.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Model:
    """A deterministic model of numbered states and actions, as tables."""

    logits: np.ndarray  # [state, action]
    value: np.ndarray  # [state]
    reward: np.ndarray  # [state, action]
    successor: np.ndarray  # [state, action]
    discount: float


@dataclass
class Node:
    """A state reached by one sequence of actions, and what came back through it."""

    state: int
    logits: np.ndarray
    guess: float  # the model's own value
    returns: list[float] = field(default_factory=list)  # the first is `guess`
    children: dict[int, "Node"] = field(default_factory=dict)
    rewards: dict[int, float] = field(default_factory=dict)  # of the steps to the children

    @property
    def value(self) -> float:
        """The mean of all that came back."""
        return sum(self.returns) / len(self.returns)

    @property
    def visits(self) -> np.ndarray:
        """How often each action was taken here."""
        actions = range(len(self.logits))
        return np.array(
            [len(self.children[a].returns) if a in self.children else 0 for a in actions]
        )

    @property
    def prior(self) -> np.ndarray:
        """The model's policy."""
        return softmax(self.logits)


@dataclass
class Result:
    """What a search is judged by."""

    visits: np.ndarray
    action: int
    policy: np.ndarray
    value: float


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities from logits."""
    weight = np.exp(x - x.max())
    return weight / weight.sum()


def new_node(model: Model, state: int) -> Node:
    """A node nobody has gone on from."""
    guess = float(model.value[state])
    return Node(state, model.logits[state], guess, returns=[guess])


def action_value(model: Model, node: Node, action: int) -> float:
    """q(s, a): the reward, and the discounted value of the child."""
    return node.rewards[action] + model.discount * node.children[action].value


def simulate(model: Model, root: Node, choose: Callable[[Node, int], int]) -> None:
    """Walk down by `choose(node, depth)` to an action never tried, try it, and carry back."""
    path, node = [], root
    while True:
        action = choose(node, len(path))
        path.append((node, action))
        if action not in node.children:
            break
        node = node.children[action]
    node.rewards[action] = float(model.reward[node.state, action])
    leaf = new_node(model, int(model.successor[node.state, action]))
    node.children[action] = leaf
    gain = leaf.guess
    for node, action in reversed(path):
        gain = node.rewards[action] + model.discount * gain
        node.returns.append(gain)


# Gumbel MuZero


def halving(considered: int, simulations: int) -> list[int]:
    """Sequential halving: how many visits the action to visit next already has.

    There are log₂ m phases. Each gives the actions still in the race equally many visits, at least
    one, and then halves their number; two race until the budget ends.
    """
    if considered == 1:
        return list(range(simulations))
    phases, had, racing, order = math.ceil(math.log2(considered)), 0, considered, []
    while len(order) < simulations:
        for _ in range(max(1, simulations // (phases * racing))):
            order += [had] * racing
            had += 1
        racing = max(2, racing // 2)
    return order[:simulations]


def mixed_value(model: Model, node: Node) -> float:
    """v_mix, which stands for actions not visited (Appendix D, Eq. 33)."""
    visited = list(node.children)
    if not visited:
        return node.guess
    prior = node.prior[visited]
    average = prior @ [action_value(model, node, a) for a in visited] / prior.sum()
    total = node.visits.sum()
    return (node.guess + total * average) / (1 + total)


def transformed(model: Model, node: Node, scale: float, offset: float) -> np.ndarray:
    """σ(completed q): to [0, 1], then (offset + the most visits) · scale (Eq. 8)."""
    mixed = mixed_value(model, node)
    actions = range(len(node.logits))
    q = np.array([action_value(model, node, a) if a in node.children else mixed for a in actions])
    unit = (q - q.min()) / max(q.max() - q.min(), 1e-8)
    return (offset + node.visits.max()) * scale * unit


def gumbel_search(
    model: Model,
    state: int,
    gumbel: np.ndarray,
    *,
    simulations: int,
    considered: int,
    scale: float,
    offset: float,
) -> Result:
    """Sequential halving at the root, the deterministic rule below it (Section 5, Eq. 14)."""
    root = new_node(model, state)
    considered = min(considered, len(root.logits))

    def best(visits: int) -> list[int]:
        """The root's actions with so many visits, the best first."""
        score = gumbel + root.logits + transformed(model, root, scale, offset)
        order = np.argsort(-score, kind="stable")
        return [int(action) for action in order if root.visits[action] == visits]

    def below(node: Node) -> int:
        improved = softmax(node.logits + transformed(model, node, scale, offset))
        return int(np.argmax(improved - node.visits / (1 + node.visits.sum())))

    for visits, tried in Counter(halving(considered, simulations)).items():  # rounds, in order
        for first in best(visits)[:tried]:
            simulate(model, root, lambda node, depth, a=first: below(node) if depth else a)
    policy = softmax(root.logits + transformed(model, root, scale, offset))
    return Result(root.visits, best(root.visits.max())[0], policy, root.value)


# MuZero's pUCT


def puct_search(model: Model, state: int, *, simulations: int) -> Result:
    """pUCT with values scaled between the least and greatest of a parent and its children.

    The count of a node includes the visit that made it (mctx), and an action not visited is worth
    the least of these values.
    """
    root = new_node(model, state)

    def choose(node: Node, depth: int) -> int:
        count = len(node.returns)
        rate = 1.25 + math.log((count + 19652 + 1) / 19652)
        bonus = rate * node.prior * math.sqrt(count) / (1 + node.visits)
        q = {a: action_value(model, node, a) for a in node.children}
        low, high = (
            min(node.value, *q.values(), node.value),
            max(node.value, *q.values(), node.value),
        )
        unit = [(q.get(a, low) - low) / max(high - low, 1e-8) for a in range(len(node.logits))]
        return int(np.argmax(np.array(unit) + bonus))

    for _ in range(simulations):
        simulate(model, root, choose)
    share = root.visits / root.visits.sum()
    return Result(root.visits, int(np.argmax(root.visits)), share, root.value)
