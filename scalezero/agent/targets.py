"""What the model should have predicted: n-step values, rewards, next latents.

A value target sums up to n rewards and bootstraps from the target network where they end. They
end early where the episode does or where the data does: after *termination* nothing follows
(value 0); after *truncation*, and where later rows are not yet known, the value of the last known
row stands for the rest.

Sources: MuZero, Eq. 5 (arXiv:1911.08265). Differs: LightZero takes a time limit for termination.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scalezero.agent.records import Batch, Targets
from scalezero.envs.spec import GOES_ON, TERMINATED


def targets(
    batch: Batch,
    latent: Float[Array, "slot row transition embed"],
    value: Float[Array, "slot row time"],
    discount: Float[Array, " slot"],
    reward_scale: Float[Array, " slot"],
) -> Targets:
    """The targets of every step of `batch`.

    Args:
        batch: Windows with `n_step` rows of look-ahead.
        latent: What the target network makes of each row's observation.
        value: What the target network expects from the row on where each step's rewards `ends`.
        discount: Of each slot's task.
        reward_scale: Of each slot's task.
    """
    time = batch.policy.shape[2]
    reward = batch.reward * reward_scale[:, None, None]
    here = batch.known[:, :, :time]
    ending = batch.ending[:, :, :time]
    decided = here & (ending == GOES_ON)
    over = here & (ending == TERMINATED)
    followed = decided & batch.known[:, :, 1 : time + 1]
    return Targets(
        latent=latent[:, :, 1 : time + 1],
        reward=jnp.where(decided, reward[:, :, :time], 0.0),
        value=n_step_value(reward, batch.known, batch.ending == TERMINATED, value, discount),
        decided=decided,
        followed=followed,
        rewarded=decided | over,
        valued=followed | over,
    )


def ends(known: Bool[Array, "slot row moment"], time: int) -> Int[Array, "slot row time"]:
    """The row from which on a value stands for what follows each of `time` steps.

    n steps later, or the last row that is known, or the step's own. They do not go down, and the
    last is less than `time` rows behind the first.
    """
    step = jnp.arange(time)[None, None]
    n_step = known.shape[2] - 1 - time
    last = jnp.sum(jnp.cumprod(known, axis=2, dtype=jnp.int32), axis=2)[:, :, None] - 1
    return jnp.maximum(step, jnp.minimum(step + n_step, last))


def n_step_value(
    reward: Float[Array, "slot row transition"],
    known: Bool[Array, "slot row moment"],
    terminated: Bool[Array, "slot row moment"],
    value: Float[Array, "slot row time"],
    discount: Float[Array, " slot"],
) -> Float[Array, "slot row time"]:
    """Σ_{j<m} γʲ r_{t+j} + γᵐ v(o_{t+m}), where m ≤ n is how far the episode is known.

    `value` is v(o_{t+m}). Rows that terminate an episode are worth 0 themselves.
    """
    time = value.shape[2]
    gamma = discount[:, None, None]
    end = ends(known, time)
    steps = end - jnp.arange(time)[None, None]
    total, factor = jnp.zeros_like(value), jnp.ones_like(value)
    for j in range(reward.shape[2] - time):
        going = j < steps
        total = jnp.where(going, total + factor * reward[:, :, j : j + time], total)
        factor = jnp.where(going, factor * gamma, factor)
    over = jnp.take_along_axis(terminated, end, axis=2)
    return total + factor * jnp.where(over, 0.0, value)
