"""How gradients become steps: AdamW, clipping, a schedule; decay on matrices and tables only."""

from dataclasses import dataclass

import jax
import optax
from jaxtyping import PyTree

from scalezero.config import LearnSettings

# Biases, gains and shifts are vectors however often they are stacked, so the name decides.
MATRICES = frozenset({"weight", "kernel", "down", "up", "choice_tokens", "places", "class_token"})

# Of the updates, at their end, over which the rate falls: "stable, then decay" (arXiv:2405.18392).
LATE = 0.4


@dataclass(frozen=True)
class Optimiser:
    """The optimiser of a run that lasts `updates` updates; one of the same settings is equal."""

    settings: LearnSettings
    updates: int

    def init(self, params: PyTree) -> optax.OptState:
        """The moments of parameters that were never updated."""
        return self._rule.init(params)

    def update(
        self, gradient: PyTree, state: optax.OptState, params: PyTree
    ) -> tuple[PyTree, optax.OptState]:
        """The step to add to `params`, and the moments after it."""
        return self._rule.update(gradient, state, params)

    @property
    def _rule(self) -> optax.GradientTransformation:
        learn = self.settings
        return optax.chain(
            optax.clip_by_global_norm(learn.clip),
            optax.adamw(
                self._rate,
                b1=learn.beta1,
                b2=learn.beta2,
                weight_decay=learn.weight_decay,
                mask=_decays,
            ),
        )

    @property
    def _rate(self) -> optax.Schedule:
        learn, peak = self.settings, self.settings.learning_rate
        updates = max(1, self.updates - learn.warmup)
        match learn.schedule:
            case "constant":
                rate = optax.constant_schedule(peak)
            case "cosine":
                rate = optax.cosine_decay_schedule(peak, updates)
            case "late":
                falls = max(1, round(LATE * updates))
                rate = optax.linear_schedule(peak, 0.0, falls, transition_begin=updates - falls)
        if not learn.warmup:
            return rate
        rise = optax.linear_schedule(0.0, peak, learn.warmup)
        return optax.join_schedules([rise, rate], [learn.warmup])


def _decays(params: PyTree) -> PyTree:
    """Which leaves weight decay applies to, by the last entry of their path."""
    is_matrix = lambda path, leaf: getattr(path[-1], "name", "") in MATRICES
    return jax.tree_util.tree_map_with_path(is_matrix, params)
