"""Every action space as a set of candidates: propose some, and say how likely they are.

A discrete task's candidates are all its actions, a text task's those that its page lists. A
continuous task's are samples of its policy, a Gaussian squashed by tanh; a candidate is kept
*before* the squashing, so that its likelihood never needs an inverse. What stands in the padding
(actions beyond a task's own or beyond a list, entries beyond its dimensions) changes neither values
nor gradients.

Source: Sampled MuZero (arXiv:2104.06303): candidates drawn from the policy itself have a uniform
prior in the search.
"""

import dataclasses
from math import prod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from scalezero.agent.records import Listing
from scalezero.agent.support import behind
from scalezero.agent.tasks import SlotTable

IMPOSSIBLE = -1e9  # the logit of a candidate that is not there


class PolicyShape(eqx.Module):
    """How wide policies are in this run, and the bounds of the Gaussian's deviation."""

    choices: int = eqx.field(static=True)
    dimensions: int = eqx.field(static=True)
    candidates: int = eqx.field(static=True)
    sampled: int = eqx.field(static=True)
    key: int = eqx.field(static=True)  # width of what is compared with listed actions; 0: none are
    sigma_min: float = eqx.field(static=True)
    sigma_max: float = eqx.field(static=True)

    @property
    def outputs(self) -> int:
        """Entries a policy head gives: logits, means and deviations, or a query for a list."""
        return max(self.choices, 2 * self.dimensions, self.key)


class Policy(eqx.Module):
    """The policies of a batch of rows; `discrete` says which half of it a row means."""

    logits: Float[Array, "slot row *axes choice"]  # IMPOSSIBLE beyond the task's own
    mean: Float[Array, "slot row *axes action"]
    sigma: Float[Array, "slot row *axes action"]
    discrete: Bool[Array, "slot row *axes"]
    used: Bool[Array, "slot row *axes action"]  # entries the task's action really has
    shape: PolicyShape

    def propose(
        self, explore: Float[Array, ""], *, alike: bool = False, key: PRNGKeyArray
    ) -> tuple[
        Float[Array, "slot row *axes candidate action"], Float[Array, "slot row *axes candidate"]
    ]:
        """Candidates and their prior logits, `IMPOSSIBLE` where there is no candidate.

        Differs from Sampled MuZero where rows are `alike`: their draws depend on each other.

        Args:
            explore: 1: all continuous candidates are samples. 0: the first one is the mean.
            alike: Whether all rows share one set of noise, each in an order of its own, which saves
                most of the drawing.
            key: Consumed.
        """
        *lead, width = self.mean.shape
        count = self.shape.candidates
        noise = jax.random.normal(key, (count, width) if alike else (*lead, count, width))
        if alike:  # in all its rotations, one after the other, until every row has one
            place = np.arange(count)
            turned = noise[(place[:, None] + place[None, :]) % count]
            rounds = -(-prod(lead) // count)
            filled = jnp.broadcast_to(turned, (rounds, *turned.shape)).reshape(-1, count, width)
            noise = filled[: prod(lead)].reshape(*lead, count, width)
        noise = noise.at[..., 0, :].multiply(explore)
        sample = self.mean[..., None, :] + self.sigma[..., None, :] * noise
        first = jnp.arange(width) == 0
        numbered = jnp.where(first, jnp.arange(count, dtype=sample.dtype)[:, None], 0.0)
        actions = jnp.where(
            self.discrete[..., None, None],
            behind(numbered, sample.ndim),
            jnp.where(self.used[..., None, :], sample, 0.0),
        )
        uniform = jnp.where(jnp.arange(count) < self.shape.sampled, 0.0, IMPOSSIBLE)
        logits = self._padded_logits()
        prior = jnp.where(self.discrete[..., None], logits, behind(uniform, logits.ndim))
        return actions, prior

    def log_prob(
        self, candidates: Float[Array, "slot row *axes candidate action"]
    ) -> Float[Array, "slot row *axes candidate"]:
        """Log-probabilities of a discrete task's actions; log-densities of continuous samples.

        Densities are those before the squashing: its Jacobian does not depend on the policy.
        """
        score = (candidates - self.mean[..., None, :]) / self.sigma[..., None, :]
        dense = -0.5 * jnp.square(score) - jnp.log(self.sigma)[..., None, :]
        dense = jnp.sum(jnp.where(self.used[..., None, :], dense, 0.0), axis=-1)
        return jnp.where(self.discrete[..., None], jax.nn.log_softmax(self._padded_logits()), dense)

    def entropy(self) -> Float[Array, "slot row *axes"]:
        """Of the choice, or of the Gaussian before the squashing; nats."""
        log = jax.nn.log_softmax(self.logits)
        choice = -jnp.sum(jnp.exp(log) * jnp.where(self.logits > IMPOSSIBLE, log, 0.0), axis=-1)
        each = jnp.where(self.used, jnp.log(self.sigma) + 0.5 * jnp.log(2 * jnp.pi * jnp.e), 0.0)
        return jnp.where(self.discrete, choice, jnp.sum(each, axis=-1))

    def _padded_logits(self) -> Float[Array, "slot row *axes candidate"]:
        lead = [(0, 0)] * (self.logits.ndim - 1)
        missing = self.shape.candidates - self.shape.choices
        return jnp.pad(self.logits, [*lead, (0, missing)], constant_values=IMPOSSIBLE)


def policy(
    output: Float[Array, "slot row *axes out"],
    table: SlotTable,
    shape: PolicyShape,
    listing: Listing,
) -> Policy:
    """The policy that a head's `output` stands for, where the last slots choose from `listing`."""
    *axes, _ = output.shape
    by_slot = lambda column: column.reshape(-1, *[1] * (output.ndim - 1))
    exists = behind(jnp.arange(shape.choices), output.ndim) < by_slot(table.choices)
    used = behind(jnp.arange(shape.dimensions), output.ndim) < by_slot(table.dimensions)
    logits = jnp.where(exists, output[..., : shape.choices], IMPOSSIBLE)
    told = len(output) - len(listing.exists)
    logits = jnp.concatenate([logits[:told], _scores(output[told:], listing, shape)])
    mean = output[..., : shape.dimensions]
    spread = output[..., shape.dimensions : 2 * shape.dimensions]
    sigma = shape.sigma_min + (shape.sigma_max - shape.sigma_min) * jax.nn.sigmoid(spread)
    return Policy(
        logits=logits,
        mean=jnp.where(used, 2 * jnp.tanh(mean / 2), 0.0),
        sigma=jnp.where(used, sigma, 1.0),
        discrete=jnp.broadcast_to(by_slot(table.discrete)[..., 0], tuple(axes)),
        used=jnp.broadcast_to(used, mean.shape),
        shape=shape,
    )


def uninformed(rows: int, table: SlotTable, shape: PolicyShape, listing: Listing) -> Policy:
    """What prefers nothing: choices are equally likely, Gaussians centred and widest."""
    outputs = jnp.zeros((len(table.choices), rows, shape.outputs))
    blank = policy(outputs, table, shape, listing)
    return dataclasses.replace(blank, sigma=jnp.where(blank.used, shape.sigma_max, 1.0))


def _scores(
    output: Float[Array, "text_slot row *axes out"], listing: Listing, shape: PolicyShape
) -> Float[Array, "text_slot row *axes choice"]:
    """The logits of listed actions: how well each fits the query, or by its place in the list."""
    listed = listing.exists.shape[-1]
    if listing.key is None:
        logits = output[..., :listed]
    else:
        query = output[..., None, : shape.key] * shape.key**-0.5
        logits = jnp.sum(query * listing.key, axis=-1)
    logits = jnp.where(listing.exists, logits, IMPOSSIBLE)
    lead = [(0, 0)] * (logits.ndim - 1)
    return jnp.pad(logits, [*lead, (0, shape.choices - listed)], constant_values=IMPOSSIBLE)


def squash_action(
    action: Float[Array, "slot *axes action"], discrete: Bool[Array, " slot"]
) -> Float[Array, "slot *axes action"]:
    """What the environment is given: numbers as they are, continuous entries through tanh."""
    where = discrete.reshape(-1, *[1] * (action.ndim - 1))
    return jnp.where(where, action, jnp.tanh(action))
