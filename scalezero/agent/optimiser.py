"""How gradients become steps: AdamW, clipping, a schedule; decay on matrices and tables only."""

import jax
import optax
from jaxtyping import PyTree

from scalezero.config import LearnSettings

# Biases, gains and shifts are vectors however often they are stacked, so the name decides.
MATRICES = frozenset({"weight", "kernel", "down", "up", "choice_tokens", "places", "class_token"})

# Of the updates, at their end, over which the rate falls: "stable, then decay" (arXiv:2405.18392).
LATE = 0.4


def optimiser(settings: LearnSettings, updates: int) -> optax.GradientTransformation:
    """The optimiser of a run that lasts `updates` updates."""
    peak, updates = settings.learning_rate, max(1, updates - settings.warmup)
    match settings.schedule:
        case "constant":
            rate = optax.constant_schedule(peak)
        case "cosine":
            rate = optax.cosine_decay_schedule(peak, updates)
        case "late":
            falls = max(1, round(LATE * updates))
            rate = optax.linear_schedule(peak, 0.0, falls, transition_begin=updates - falls)
    if settings.warmup:
        rise = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup)
        rate = optax.join_schedules([rise, rate], [settings.warmup])
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(
            rate,
            b1=settings.beta1,
            b2=settings.beta2,
            weight_decay=settings.weight_decay,
            mask=_decays,
        ),
    )


def _decays(params: PyTree) -> PyTree:
    """Which leaves weight decay applies to, by the last entry of their path."""
    is_matrix = lambda path, leaf: getattr(path[-1], "name", "") in MATRICES
    return jax.tree_util.tree_map_with_path(is_matrix, params)
