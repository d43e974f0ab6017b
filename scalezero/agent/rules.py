"""How a search chooses: what to try next, at roots and below them, and what to do in the end."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from scalezero.agent.halving import Entry, Race, race
from scalezero.agent.policies import IMPOSSIBLE
from scalezero.agent.tree import Actions
from scalezero.config import SearchSettings

PUCT_INIT, PUCT_BASE = 1.25, 19652.0


class Rule(eqx.Module):
    """One kind of search. What it remembers between passes is its own business."""

    @abstractmethod
    def start(self, roots: Actions) -> Any:
        """What it remembers at first."""

    @abstractmethod
    def goes_on(self, memory: Any) -> Bool[Array, ""]:
        """Whether any row has simulations left."""

    @abstractmethod
    def enter(self, memory: Any, roots: Actions, lanes: int) -> tuple[Entry, Any]:
        """Which actions of the roots to try next, at most `lanes` of each."""

    @abstractmethod
    def below(self, node: Actions) -> Int[Array, " lane"]:
        """The action to follow at nodes below the root."""

    @abstractmethod
    def decide(
        self, roots: Actions, *, key: PRNGKeyArray
    ) -> tuple[Int[Array, " row"], Float[Array, "row candidate"]]:
        """The action to take, and the policy to learn."""


class Gumbel(Rule):
    """Sequential halving at the root, a deterministic rule below it.

    Source: Gumbel MuZero (openreview.net/forum?id=bERaNdoegnO), Sections 3 to 5.
    """

    noise: Float[Array, "row candidate"]
    settings: SearchSettings = eqx.field(static=True)

    def start(self, roots: Actions) -> Race:
        """Before the first round."""
        return race(roots.exists, self.settings.considered, self.settings.simulations)

    def goes_on(self, memory: Race) -> Bool[Array, ""]:
        """Whether any row has simulations left."""
        return ~jnp.all(memory.over)

    def enter(self, memory: Race, roots: Actions, lanes: int) -> tuple[Entry, Race]:
        """Those that this round has left; where there are none, the first of the next."""
        score = self._score(roots)
        return memory.next_round(score, roots.exists, roots.visits).call(lanes)

    def below(self, node: Actions) -> Int[Array, " lane"]:
        """What brings the visits closest to the improved policy (Eq. 14)."""
        improved = jax.nn.softmax(node.prior + completed_values(node, self.settings), axis=-1)
        visits = node.visits.astype(jnp.float32)
        share = visits / (1 + jnp.sum(visits, axis=-1, keepdims=True))
        return jnp.argmax(improved - share, axis=-1)

    def decide(
        self, roots: Actions, *, key: PRNGKeyArray
    ) -> tuple[Int[Array, " row"], Float[Array, "row candidate"]]:
        """The best of the most visited actions; the policy improved by all that was found."""
        most = roots.visits == jnp.max(roots.visits, axis=-1, keepdims=True)
        choice = jnp.argmax(jnp.where(most & roots.exists, self._score(roots), -jnp.inf), axis=-1)
        return choice, jax.nn.softmax(roots.prior + completed_values(roots, self.settings), axis=-1)

    def _score(self, roots: Actions) -> Float[Array, "row candidate"]:
        return self.noise + roots.prior + completed_values(roots, self.settings)


class Puct(Rule):
    """MuZero's pUCT, one simulation of each row after another; of equals the first is taken.

    Source: MuZero, Appendix B (arXiv:1911.08265).
    """

    settings: SearchSettings = eqx.field(static=True)
    explore: Float[Array, ""]

    def start(self, roots: Actions) -> None:
        """Nothing: each pass is a simulation of every row."""

    def goes_on(self, memory: None) -> Bool[Array, ""]:
        """Always: the search has as many passes as simulations, which a compiler can see."""
        return jnp.array(True)

    def enter(self, memory: None, roots: Actions, lanes: int) -> tuple[Entry, None]:
        """One, as below the root."""
        choice = self.below(roots)[:, None]
        return Entry(choice, jnp.ones_like(choice, bool)), None

    def below(self, node: Actions) -> Int[Array, " lane"]:
        """The best bound, with values scaled between the least and greatest of node and actions."""
        visits = node.visits.astype(jnp.float32)
        exists, visited = node.exists, node.visits > 0
        count, worth = 1 + jnp.sum(visits, axis=-1, keepdims=True), node.worth[..., None]
        rate = PUCT_INIT + jnp.log((count + PUCT_BASE + 1) / PUCT_BASE)
        prior = jax.nn.softmax(node.prior, axis=-1)
        bonus = rate * prior * jnp.sqrt(count) / (1 + visits)
        value = jnp.where(visited, node.value, worth)
        low = jnp.minimum(jnp.min(value, axis=-1, keepdims=True), worth)
        spread = jnp.maximum(jnp.max(value, axis=-1, keepdims=True), worth) - low
        unit = jnp.where(visited, (value - low) / jnp.maximum(spread, 1e-8), 0.0)
        return jnp.argmax(jnp.where(exists, unit + bonus, -jnp.inf), axis=-1)

    def decide(
        self, roots: Actions, *, key: PRNGKeyArray
    ) -> tuple[Int[Array, " row"], Float[Array, "row candidate"]]:
        """Drawn by visits; without exploration the most visited."""
        visits = roots.visits.astype(jnp.float32)
        share = visits / jnp.sum(visits, axis=-1, keepdims=True)
        drawn = jax.random.categorical(key, jnp.log(share) / self.settings.temperature)
        return jnp.where(self.explore > 0, drawn, jnp.argmax(share, axis=-1)), share


def completed_values(node: Actions, settings: SearchSettings) -> Float[Array, "*axes candidate"]:
    """Values of a node's actions, those not visited completed, scaled for the policy.

    Candidates that do not exist have no part in the rescaling to [0, 1], so padding cannot matter;
    and values that lie closer together than `search.value_floor` are rescaled to less than that,
    so that where nothing is known yet, the policy is not taught noise.

    Source: Gumbel MuZero, Appendix D, Eqs. 8 and 33.
    """
    visits = node.visits.astype(jnp.float32)
    exists, visited = node.exists, visits > 0
    tiny = jnp.finfo(jnp.float32).tiny
    weight = jnp.where(visited, jax.nn.softmax(node.prior, axis=-1) + tiny, 0.0)
    average = jnp.sum(weight * node.value, axis=-1) / jnp.maximum(jnp.sum(weight, axis=-1), tiny)
    total = jnp.sum(visits, axis=-1)
    mixed = (node.guess + total * average) / (total + 1)
    value = jnp.where(visited, node.value, mixed[..., None])
    low = jnp.min(jnp.where(exists, value, jnp.inf), axis=-1, keepdims=True)
    high = jnp.max(jnp.where(exists, value, -jnp.inf), axis=-1, keepdims=True)
    unit = (value - low) / jnp.maximum(high - low, max(settings.value_floor, 1e-8))
    scale = (settings.visit_offset + jnp.max(visits, axis=-1, keepdims=True)) * settings.value_scale
    return jnp.where(exists, scale * unit, 0.0)


def with_noise(
    logits: Float[Array, "*axes candidate"],
    weight: Float[Array, ""],
    alpha: float,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "*axes candidate"]:
    """The logits of a prior mixed with Dirichlet noise over the candidates that exist.

    Source: AlphaZero (arXiv:1712.01815).
    """
    exists = logits > IMPOSSIBLE / 2
    gamma = jnp.where(exists, jax.random.gamma(key, alpha, logits.shape), 0.0)
    noise = gamma / jnp.maximum(jnp.sum(gamma, axis=-1, keepdims=True), 1e-30)
    mixed = (1 - weight) * jax.nn.softmax(logits) + weight * noise
    return jnp.where(exists, jnp.log(jnp.maximum(mixed, 1e-30)), IMPOSSIBLE)
