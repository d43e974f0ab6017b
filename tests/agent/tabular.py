"""A world that is a table: states are numbers, so a search in it can be checked by hand."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from scalezero.agent.policies import IMPOSSIBLE, Policy, PolicyShape
from scalezero.agent.records import History
from scalezero.agent.tasks import SlotTable
from scalezero.agent.world import SlotWorld
from scalezero.nets.transformer import Cache

ACTION = 1.0  # what a token or a feature is of: its first entry; 0: of a state


class Weightless(eqx.Module):
    """What a world of tables shares between tasks."""

    backbone: tuple = ()
    precision: str = eqx.field(static=True, default="float32")


class Tabular(SlotWorld):
    """Speaks like a `SlotWorld`. A token is [kind, number], a feature [kind, state, action]."""

    logits: Array  # [state, choice], IMPOSSIBLE for padding
    values: Array  # [state]
    rewards: Array  # [state, choice]
    successor: Array  # [state, choice]
    count: int = eqx.field(static=True)  # choices that are not padding

    def __init__(self, model, choices: int) -> None:
        """A world of `model`, a `reference_tree.Model`, for actions padded to `choices`."""
        self.count = count = model.logits.shape[1]
        pad = lambda x, fill: jnp.pad(
            jnp.asarray(x), ((0, 0), (0, choices - count)), constant_values=fill
        )
        self.vector = self.choice_tokens = self.dimension_tokens = None
        self.policy_head = self.value_head = self.reward_head = self.dynamics_head = None
        self.shared, self.library = Weightless(), None
        self.logits = pad(model.logits.astype("float32"), IMPOSSIBLE)
        self.values = jnp.asarray(model.value, jnp.float32)
        self.rewards = pad(model.reward.astype("float32"), 1e6)
        self.successor = pad(model.successor.astype("int32"), 0)
        self.table = SlotTable(
            choices=jnp.full(1, count),
            dimensions=jnp.zeros(1, jnp.int32),
            vocabulary=jnp.zeros(1, jnp.int32),
            reward_scale=jnp.ones(1),
            discount=jnp.full(1, model.discount, jnp.float32),
        )

    def entrants(self, considered):
        """The same in every row."""
        return {min(self.count, considered)}

    def root(self, history: History):
        """The state is the newest latent's only entry."""
        state = history.latent[:, :, -1, 0]
        flat = state.reshape(-1).astype(jnp.int32)
        feature = jnp.stack([jnp.zeros_like(state), state, jnp.zeros_like(state)], axis=-1)
        return feature, Cache((), flat, jnp.zeros_like(flat))

    def action_token(self, action, listing):
        """[ACTION, which]."""
        return jnp.stack([jnp.full_like(action[..., 0], ACTION), action[..., 0]], axis=-1)

    def step(self, token, cache: Cache):
        """An action is noted; a state replaces the one in the cache."""
        kind, number = token[..., 0], token[..., 1]
        flat = number.reshape(-1).astype(jnp.int32)
        acted = kind.reshape(-1) == ACTION
        state = jnp.where(acted, cache.position, flat)
        feature = jnp.stack([kind, state.reshape(kind.shape).astype(kind.dtype), number], axis=-1)
        return feature, Cache((), state, cache.start)

    def policy(self, feature, listing) -> Policy:
        """A real discrete policy with the table's logits."""
        logits = self.logits[feature[..., 1].astype(jnp.int32)]
        choices = logits.shape[-1]
        nothing = jnp.zeros((*feature.shape[:-1], 1))
        return Policy(
            logits=logits,
            mean=nothing,
            sigma=nothing + 1,
            discrete=jnp.ones(feature.shape[:-1], bool),
            used=jnp.zeros(nothing.shape, bool),
            shape=PolicyShape(
                choices=choices,
                dimensions=1,
                candidates=choices,
                sampled=1,
                key=0,
                sigma_min=0.1,
                sigma_max=1.0,
            ),
        )

    def value(self, feature):
        """Of the state."""
        return self.values[feature[..., 1].astype(jnp.int32)]

    def reward(self, feature):
        """Of the action just taken in the state."""
        return self.rewards[self._pair(feature)]

    def next_latent(self, feature):
        """The token of the next state."""
        state = self.successor[self._pair(feature)].astype(feature.dtype)
        return jnp.stack([jnp.zeros_like(state), state], axis=-1)

    def _pair(self, feature):
        return feature[..., 1].astype(jnp.int32), feature[..., 2].astype(jnp.int32)


def at(states) -> History:
    """Rows of one slot that stand in these states."""
    latent = jnp.asarray(states, jnp.float32)[None, :, None, None]
    rows = latent.shape[1]
    return History(latent, jnp.zeros_like(latent), jnp.ones((1, rows), jnp.int32))
