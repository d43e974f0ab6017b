"""The smallest run that has every part: shared by the tests of this folder."""

from scalezero.config import Config

SETTINGS = {
    "tasks": ["toy/target", "toy/chain"],
    "model": {
        "embed": 16,
        "layers": 1,
        "heads": 2,
        "experts": 2,
        "expert_width": 16,
        "shared_width": 16,
        "head_width": 16,
        "vector_width": 16,
        "bins": 21,
    },
    "search": {"simulations": 4, "candidates": 4, "considered": 4},
    "learn": {"rows": 4, "updates_per_call": 2, "unroll": 3, "n_step": 3},
    "data": {
        "envs": 4,
        "groups": 2,
        "warmup_decisions": 16,
        "replay_bytes": 4_000_000,
        "replay_rows": 4_000,
    },
    "run": {
        "decisions": 120,
        "evaluate_every": 60,
        "evaluation_episodes": 2,
        "final_episodes": 3,
        "log_every": 20,
    },
}


def tiny(**changes) -> Config:
    """The smallest config, with whole sections replaced."""
    return Config.model_validate(SETTINGS | changes)
