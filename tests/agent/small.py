"""A small world of four tasks, and random experience for it: what the agent's tests share."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from scalezero.agent.act import empty_history
from scalezero.agent.records import Batch, History, Observation
from scalezero.agent.stages import learnt
from scalezero.agent.tasks import TaskTable, task_table
from scalezero.agent.world import World, world
from scalezero.config import Config
from scalezero.envs.spec import NOTHING, Continuous, Discrete, Image, Listed, Task, Text, Vector

SIZE = {
    "embed": 16,
    "layers": 2,
    "heads": 2,
    "experts": 3,
    "expert_width": 8,
    "shared_width": 16,
    "head_width": 16,
    "vector_width": 16,
    "vit_embed": 16,
    "vit_depth": 1,
    "vit_heads": 2,
    "vit_hidden": 16,
    "bins": 21,
    "support": 10.0,
    "precision": "float32",
}
SEARCH = {"simulations": 4, "candidates": 3, "considered": 3, "context": 2}
LEARN = {"unroll": 3, "n_step": 2, "rows": 2}


def config(*, model=(), search=(), learn=()) -> Config:
    """The small config, with changes."""
    return Config(model=SIZE | dict(model), search=SEARCH | dict(search), learn=LEARN | dict(learn))


def task(name: str, observation, action, **changes) -> Task:
    """A task that no suite has."""
    scores = {"floor": 0.0, "ceiling": 1.0, "target": 1.0, "source": "made up"}
    return Task(
        name=name,
        observation=observation,
        action=action,
        action_repeat=1,
        max_decisions=10,
        **scores,
        **changes,
    )


PICTURE = Image(16, 16, 1)
THREE = task("t/three", Vector(2), Discrete(3))
PLANE = task("t/plane", Vector(4), Continuous(2), reward_scale=0.5)
LINE = task("t/line", Vector(3), Continuous(1))
SEEN = task("t/seen", PICTURE, Discrete(4))
TOLD = task("t/told", Text(3), Listed(3))
ALL = (THREE, PLANE, LINE, SEEN)  # numbers 0 to 3; the last alone shows pictures
WITH_TEXT = (*ALL, TOLD)
TEXTS = 12  # in the library
LIBRARY = jnp.asarray(np.random.default_rng(7).normal(size=(TEXTS, 384)), jnp.float32)


def table(tasks=ALL) -> TaskTable:
    """The table of `tasks`."""
    return task_table(tasks, 0.9)


def small_world(tasks=ALL, *, settings=None, key, shake: float = 0.3) -> World:
    """A world whose heads say something: all that learns is moved by noise."""
    settings = config() if settings is None else settings
    make = functools.partial(world, precision=settings.model.precision)
    fresh = eqx.filter_jit(lambda key: make(settings, table(tasks), key=key))(key)
    rng = np.random.default_rng(0)
    params, rest = eqx.partition(fresh, learnt(fresh))
    noise = lambda leaf: shake * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return eqx.combine(jax.tree.map(lambda leaf: leaf + noise(leaf), params), rest)


def observation(
    rng, *lead: int, vector_slots: int, image_slots: int, size: int, text_slots: int = 0
) -> Observation:
    """Random things to see; `lead` is the row axis and those behind it. Pages list 2 of 3."""
    numbers = rng.integers(
        0, TEXTS, (text_slots, *lead, 1 + TOLD.action.count if text_slots else 1)
    )
    numbers[..., 3:] = NOTHING
    return Observation(
        jnp.asarray(rng.normal(size=(vector_slots, *lead, size)), jnp.float32),
        jnp.asarray(rng.integers(0, 256, (image_slots, *lead, *PICTURE.shape)), jnp.uint8),
        jnp.asarray(numbers, jnp.int32),
    )


def actions(rng, world: World, numbers, *lead: int) -> jax.Array:
    """Random actions of the tasks `numbers`: choices, or entries before the squashing."""
    width, given = (
        world.tasks.action_width,
        np.zeros((len(numbers), *lead, world.tasks.action_width)),
    )
    for slot, number in enumerate(numbers):
        if choices := world.tasks.choices[number]:
            given[slot, ..., 0] = rng.integers(0, choices, lead)
        else:
            used = np.arange(width) < world.tasks.dimensions[number]
            given[slot] = np.where(used, rng.normal(size=(*lead, width)), 0)
    return jnp.asarray(given, jnp.float32)


def vector_slots(world: World, numbers) -> int:
    """How many of the slots show vectors."""
    return sum(number < world.tasks.vector_tasks for number in numbers)


def history(rng, world: World, numbers, rows: int, context: int = 2) -> History:
    """A past of random lengths, with a newest observation and no action for it."""
    slots = len(numbers)
    empty = empty_history(world, slots, rows, context)
    token = jnp.asarray(rng.normal(size=empty.token.shape), jnp.float32)
    return History(
        jnp.asarray(rng.normal(size=empty.latent.shape), jnp.float32),
        token.at[:, :, -1].set(0),
        jnp.asarray(rng.integers(1, context + 1, (slots, rows)), jnp.int32),
    )


def batch(rng, world: World, numbers, rows: int = 2, time: int = 3, n_step: int = 2) -> Batch:
    """Random windows, all rows known, no episode over."""
    slots, vectors = len(numbers), vector_slots(world, numbers)
    texts = sum(number >= world.tasks.tasks - world.tasks.text_tasks for number in numbers)
    seen = observation(
        rng,
        rows,
        time + n_step + 1,
        vector_slots=vectors,
        image_slots=slots - vectors - texts,
        text_slots=texts,
        size=world.tasks.vector_size,
    )
    count = world.shape.candidates
    room = np.array([world.tasks.choices[n] or world.shape.sampled for n in numbers])
    valid = np.broadcast_to(
        (np.arange(count) < room[:, None])[:, None, None], (slots, rows, time, count)
    )
    policy = rng.random((slots, rows, time, count)) * valid
    return Batch(
        observation=seen,
        action=actions(rng, world, numbers, rows, time + n_step),
        candidates=actions(rng, world, numbers, rows, time, count),
        policy=jnp.asarray(policy / policy.sum(-1, keepdims=True), jnp.float32),
        valid=jnp.asarray(valid),
        reward=jnp.asarray(rng.normal(size=(slots, rows, time + n_step)), jnp.float32),
        ending=jnp.zeros((slots, rows, time + n_step + 1), jnp.uint8),
        known=jnp.ones((slots, rows, time + n_step + 1), bool),
    )
