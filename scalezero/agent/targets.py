"""What the model should have predicted: n-step values, rewards, next latents.

A value target sums up to n rewards and bootstraps from the target network where they end. They
end early where the episode does or where the data does: after *termination* nothing follows
(value 0); after *truncation*, and where later rows are not yet known, the value of the last known
row stands for the rest.

Sources: MuZero, Eq. 5 (arXiv:1911.08265). Differs: LightZero takes a time limit for termination.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from scalezero.agent.records import Batch, Targets
from scalezero.envs.spec import GOES_ON, TERMINATED


def targets(
    batch: Batch,
    latent: Float[Array, "slot row moment embed"],
    value: Float[Array, "slot row moment"],
    discount: Float[Array, " slot"],
    reward_scale: Float[Array, " slot"],
) -> Targets:
    """The targets of every step of `batch`.

    Args:
        batch: Windows with `n_step` rows of look-ahead.
        latent: What the target network makes of each row's observation.
        value: What the target network expects from each row on.
        discount: Of each slot's task.
        reward_scale: Of each slot's task.
    """
    time = batch.policy.shape[2]
    n_step = batch.reward.shape[2] - time
    reward = batch.reward * reward_scale[:, None, None]
    here = batch.known[:, :, :time]
    ending = batch.ending[:, :, :time]
    decided = here & (ending == GOES_ON)
    over = here & (ending == TERMINATED)
    followed = decided & batch.known[:, :, 1 : time + 1]
    return Targets(
        latent=latent[:, :, 1 : time + 1],
        reward=jnp.where(decided, reward[:, :, :time], 0.0),
        value=n_step_value(
            reward, batch.known, batch.ending == TERMINATED, value, discount, n_step
        ),
        decided=decided,
        followed=followed,
        rewarded=decided | over,
        valued=followed | over,
    )


def n_step_value(
    reward: Float[Array, "slot row transition"],
    known: Bool[Array, "slot row moment"],
    terminated: Bool[Array, "slot row moment"],
    value: Float[Array, "slot row moment"],
    discount: Float[Array, " slot"],
    n_step: int,
) -> Float[Array, "slot row time"]:
    """Σ_{j<m} γʲ r_{t+j} + γᵐ v(o_{t+m}), where m ≤ n is how far the episode is known.

    Rows that terminate an episode are worth 0 themselves.
    """
    time = reward.shape[2] - n_step
    gamma = discount[:, None, None]
    worth = jnp.where(terminated, 0.0, value)
    total = jnp.zeros((*reward.shape[:2], time))
    factor = jnp.ones_like(total)
    bootstrap = worth[:, :, :time]
    going = known[:, :, :time]
    for j in range(n_step):
        going = going & known[:, :, j + 1 : j + 1 + time]
        total = jnp.where(going, total + factor * reward[:, :, j : j + time], total)
        factor = jnp.where(going, factor * gamma, factor)
        bootstrap = jnp.where(going, worth[:, :, j + 1 : j + 1 + time], bootstrap)
    return total + factor * bootstrap
