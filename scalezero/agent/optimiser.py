"""How gradients become steps: AdamW, clipping, a schedule; decay on matrices and tables only."""

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from scalezero.config import LearnSettings
from scalezero.nets.norms import RunningNorm

# Biases, gains and shifts are vectors however often they are stacked, so the name decides.
MATRICES = frozenset({"weight", "kernel", "choice_tokens", "places", "class_token"})


def optimiser(settings: LearnSettings, updates: int) -> optax.GradientTransformation:
    """The optimiser of a run that lasts `updates` updates."""
    rate: optax.Schedule
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(
            settings.learning_rate, max(1, updates - settings.warmup)
        )
    else:
        rate = optax.constant_schedule(settings.learning_rate)
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


def moving(world: PyTree) -> PyTree[bool]:
    """Which leaves the optimiser moves: all but running statistics, which follow the data."""
    is_norm = lambda node: isinstance(node, RunningNorm)
    moves = lambda leaf: eqx.is_inexact_array(leaf)
    of = lambda node: jax.tree.map(lambda leaf: moves(leaf) and not is_norm(node), node)
    return jax.tree.map(of, world, is_leaf=is_norm)
