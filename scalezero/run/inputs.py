"""Made-up inputs in the shapes that a run has, to compile and to measure with.

They are random, since what a model does with equal inputs says little: all go to one expert.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, Shaped

from scalezero.agent.learner import Learner, compile_for
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.records import Batch, Observation
from scalezero.agent.tasks import TaskTable
from scalezero.config import Config
from scalezero.nets.text import MINILM
from scalezero.run.build import table_of


def observation(table: TaskTable, *axes: int, key: PRNGKeyArray) -> Observation:
    """What all tasks show; `axes` follow that of the slots."""
    vector, image, text = jax.random.split(key, 3)
    pictures = table.tasks - table.vector_tasks - table.text_tasks
    shape = (pictures, *axes, *table.image_shape)
    pages = (table.text_tasks, *axes, 1 + table.most_listed)
    return Observation(
        jax.random.normal(vector, (table.vector_tasks, *axes, table.vector_size)),
        jax.random.bits(image, shape, jnp.uint8),
        jax.random.randint(text, pages, 0, 1 + table.most_listed),
    )


def batches(config: Config, *, key: PRNGKeyArray) -> tuple[Int[Array, "batch slot"], Batch]:
    """The task of every slot of one call's batches, and such batches; all rows are known."""
    table, learn = table_of(config), config.learn
    seen, acted, tried = jax.random.split(key, 3)
    count, transitions = learn.updates_per_call, learn.unroll + learn.n_step
    lead = (count, table.tasks, learn.rows)
    candidates = table.candidates(config.search.candidates)
    one = lambda k: observation(table, learn.rows, transitions + 1, key=k)
    batch = Batch(
        observation=jax.vmap(one)(jax.random.split(seen, count)),
        action=jax.random.uniform(acted, (*lead, transitions, table.action_width)),
        candidates=jax.random.uniform(tried, (*lead, learn.unroll, candidates, table.action_width)),
        policy=jnp.full((*lead, learn.unroll, candidates), 1 / candidates, jnp.float32),
        valid=jnp.ones((*lead, learn.unroll, candidates), bool),
        reward=jnp.zeros((*lead, transitions)),
        ending=jnp.zeros((*lead, transitions + 1), jnp.uint8),
        known=jnp.ones((*lead, transitions + 1), bool),
    )
    return jnp.broadcast_to(jnp.arange(table.tasks), lead[:2]), batch


def compile_updates(
    config: Config,
    state: Learner,
    library: Shaped[Array, "text content"],
    rule: Optimiser,
) -> None:
    """Compile the updates of a run, so that its first one need not; takes batches of zeros."""
    shapes = jax.eval_shape(lambda: batches(config, key=jax.random.key(0)))
    task, batch = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    compile_for(state, batch, task, library, config.learn, rule)


def library_shape(config: Config) -> jax.ShapeDtypeStruct:
    """The library of texts at the start of a run; nothing without text."""
    text = config.text
    if not table_of(config).text_tasks:
        return jax.ShapeDtypeStruct((0, 0), jnp.float32)
    if text.trains:
        return jax.ShapeDtypeStruct((text.capacity, text.tokens), jnp.int32)
    return jax.ShapeDtypeStruct((text.capacity, MINILM.embed), jnp.float32)


def library(config: Config, *, key: PRNGKeyArray) -> Shaped[Array, "text content"]:
    """Such a library, full of nonsense."""
    shape = library_shape(config)
    if shape.dtype == jnp.int32:
        return jax.random.randint(key, shape.shape, 1000, 2000)
    return jax.random.normal(key, shape.shape)
