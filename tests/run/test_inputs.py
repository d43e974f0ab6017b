import jax
import numpy as np
from tiny import SETTINGS, tiny

from scalezero.bench.parts import filled
from scalezero.run import inputs
from scalezero.run.collect import batch_of

TASKS = ["gym/CartPole-v1", "toy/catch", "toy/corridor"]  # states, pictures, text


def test_made_up_batches_look_like_those_of_a_run():
    """So that what is compiled for them is what a run's first update finds."""
    config = tiny(tasks=TASKS, data=SETTINGS["data"] | {"replay_bytes": 60_000_000})
    learn, random = config.learn, np.random.default_rng(0)
    mixture = filled(config, 200)
    sampled = mixture.sample(
        np.arange(len(TASKS)),
        learn.rows,
        learn.unroll,
        learn.n_step,
        learn.recent,
        learn.updates_per_call,
        random,
    )
    _, made_up = inputs.batches(config, key=jax.random.key(0))
    kinds = lambda batch: jax.tree.map(lambda x: (x.shape, str(x.dtype), x.weak_type), batch)
    assert kinds(made_up) == kinds(batch_of(sampled))
