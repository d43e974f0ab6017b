"""The parts of a run, each measured alone, on inputs in the shapes that a run has."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from scalezero.agent.act import act, empty_history
from scalezero.agent.learner import update, update_many
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.ready import ready
from scalezero.agent.search import itinerary
from scalezero.bench.measure import Measurement, timed
from scalezero.bench.work import NO_WORK, Work, work
from scalezero.config import Config, ConfigError
from scalezero.data.mixture import Mixture
from scalezero.envs.pool import Pool
from scalezero.envs.spec import Continuous, Discrete, Task
from scalezero.nets.experts import Experts, experts
from scalezero.nets.linear import narrowed
from scalezero.run import inputs
from scalezero.run.build import learner_of, replays_of, rows_of, table_of, tasks_of, world_of
from scalezero.run.collect import batch_of
from scalezero.run.precision import precision_of
from scalezero.run.texts import Texts

TOKENS = (16, 64, 256, 1_024, 4_096, 16_384)
FEW_TOKENS = 1_024  # what every expert makes of more would fill a laptop's memory


def search(config: Config, seconds: float, rows: Sequence[int]) -> Iterator[Measurement]:
    """One search: encode, root, simulations, decision; for all tasks' rows together."""
    world, table = ready(world_of(config)), table_of(config)
    task, library = jnp.arange(table.tasks), inputs.library(config, key=jax.random.key(1))
    for count in rows or (table.tasks * rows_of(config),):
        each = _rows(count, table.tasks)
        history = empty_history(world, table.tasks, each, config.search.context)
        seen = inputs.observation(table, each, key=jax.random.key(2))
        first, explore = jnp.zeros((table.tasks, each), bool), jnp.ones(())

        def call(plan=act, history=history, seen=seen, first=first, explore=explore):
            key = jax.random.key(3)
            return plan(world, task, history, seen, library, first, config.search, explore, key=key)

        took = timed(call, seconds)
        way = itinerary(world.bind(task, table.vector_tasks, library), config.search, count)
        busy = config.search.simulations / sum(each.lanes * each.passes for each in way)
        rounds = (busy * each.passes for each in way)
        needed = work(lambda call=call: call(act.__wrapped__), rounds=rounds)
        yield Measurement(f"search of {count:,} rows", took, count, "decisions", needed)


def expert_layers(config: Config, seconds: float, rows: Sequence[int]) -> Iterator[Measurement]:
    """One layer of experts, forward and backward, against dense ones.

    Experts stand in a stack, as for updates, or `apart`, as a search may read them. `dense` is as
    wide as what a token uses; `all by all`, of few tokens, puts every token through every expert.
    """
    size, precision = config.model, precision_of(config.model)
    if not size.experts:
        raise ConfigError("model.experts = 0: there are no experts to measure")
    make = lambda count, picks, hidden: narrowed(
        experts(
            size.embed,
            count,
            hidden,
            size.shared_width,
            picks,
            size.router,
            key=jax.random.key(0),
        ),
        precision,
    )
    routed = make(size.experts, size.expert_picks, size.expert_width)
    single = make(1, 1, size.expert_width * size.expert_picks)
    first = jnp.zeros_like(routed.router.weight).at[0].set(1.0)
    stuck = eqx.tree_at(lambda layer: layer.router.weight, routed, first)
    through = lambda layer, x: layer(x)[0]
    for tokens in rows or TOKENS:
        x = jax.random.normal(jax.random.key(1), (tokens, size.embed))
        kinds = {
            "as they fall": (through, routed, x),
            "all to one": (through, stuck, jnp.abs(x)),
            "dense": (_alone, single, x),
        }
        if routed.can_part:
            kinds["apart"] = (through, routed.apart(), x)
        if tokens <= FEW_TOKENS:
            kinds["all by all"] = (_by_all, routed, x)
        needed = work(_alone, single, x), work(_slopes(_alone), single, x)
        for name, (layer, weights, given) in kinds.items():
            backward = [] if name == "apart" else [("and backward", _slopes(layer))]
            ways = [("forward", layer), *backward]
            for (way, call), least in zip(ways, needed, strict=False):
                compiled = eqx.filter_jit(call)
                took = timed(lambda c=compiled, w=weights, g=given: c(w, g), seconds)
                yield Measurement(f"{tokens:,}, {name}, {way}", took, tokens, "tokens", least)


def encoders(config: Config, seconds: float, rows: Sequence[int]) -> Iterator[Measurement]:
    """The encoders of one kind of observation each, on what all its tasks show."""
    world, table = world_of(config), table_of(config)
    library = inputs.library(config, key=jax.random.key(1))
    kinds = np.array([task.kind for task in tasks_of(config)])
    for count in rows or (table.tasks * config.data.envs,):
        each = _rows(count, table.tasks)
        seen = inputs.observation(table, each, key=jax.random.key(2))
        for name, kind in (("vector", 0), ("image", 1), ("text", 2)):
            slots = np.flatnonzero(kinds == kind)
            if not len(slots):
                continue
            empty = jax.tree.map(lambda x: x[:0], seen)
            shown = eqx.tree_at(lambda o, n=name: getattr(o, n), empty, getattr(seen, name))
            vectors = len(slots) if name == "vector" else 0

            def encode(world, shown, slots=slots, vectors=vectors):
                return world.bind(jnp.asarray(slots), vectors, library).encode(shown)

            compiled = eqx.filter_jit(encode)
            took = timed(lambda c=compiled, s=shown: c(world, s), seconds)
            found = len(slots) * each
            named = f"{name} encoder, {found:,} observations"
            yield Measurement(named, took, found, "observations", work(encode, world, shown))


def environments(config: Config, seconds: float, _: Sequence[int]) -> Iterator[Measurement]:
    """The environments of each task alone, then all together; actions at random."""
    tasks = tasks_of(config)
    groups = [*((task,) for task in tasks), *([tasks] if len(tasks) > 1 else [])]
    for group in groups:
        texts = Texts(config, group)
        pool = Pool(group, config.data.envs, seed=0, training=True, read=texts.read)
        random = np.random.default_rng(0)
        width = max(task.action.width for task in group)
        try:
            pool.reset()

            def step(pool=pool, group=group, width=width, random=random):
                drawn = [_drawn(task, config.data.envs, width, random) for task in group]
                pool.send(np.stack(drawn))
                return pool.recv().reward

            took = timed(step, seconds)
        finally:
            pool.close()
        named = group[0].name if len(group) == 1 else "all tasks together"
        yield Measurement(named, took, len(group) * config.data.envs, "decisions")


def replay(config: Config, seconds: float, _: Sequence[int]) -> Iterator[Measurement]:
    """Sampling the batches of one call from replays of 20,000 rows each, and handing them over."""
    mixture = filled(config, 20_000)
    learn, random = config.learn, np.random.default_rng(0)
    count = len(mixture.replays)

    def sample():
        return mixture.sample(
            np.arange(count),
            learn.rows,
            learn.unroll,
            learn.n_step,
            learn.recent,
            learn.updates_per_call,
            random,
        )

    windows = learn.updates_per_call * count * learn.rows
    size = sum(x.nbytes for x in jax.tree.leaves(vars(sample())) if isinstance(x, np.ndarray))
    here = jax.default_backend() == "cpu"  # elsewhere the ceiling is that of another memory
    moved = Work(0.0, 2.0 * size) if here else NO_WORK
    yield Measurement("sample", timed(sample, seconds), windows, "windows", moved)
    took = timed(lambda: batch_of(sample()), seconds)
    yield Measurement("sample, to the device", took, windows, "windows", moved)


def updates(config: Config, seconds: float, _: Sequence[int]) -> Iterator[Measurement]:
    """Updates as a run makes them, on made-up batches."""
    rule = Optimiser(config.learn, 1_000_000)
    state = learner_of(config, rule)
    task, batches = inputs.batches(config, key=jax.random.key(0))
    library = inputs.library(config, key=jax.random.key(1))
    count = config.learn.updates_per_call
    one = lambda tree: jax.tree.map(lambda x: x[0], tree)
    needed = work(lambda s: update(s, one(batches), task[0], library, config.learn, rule), state)

    def call():
        nonlocal state
        state, metrics = update_many(state, batches, task, library, config.learn, rule)
        return metrics

    took = timed(call, seconds)
    windows = count * task.shape[1] * config.learn.rows
    notes = {"updates_per_second": count / took.median}
    named = f"{count} updates of {windows // count:,} windows"
    yield Measurement(named, took, windows, "windows", needed * count, notes)


PARTS: dict[str, Callable[[Config, float, Sequence[int]], Iterator[Measurement]]] = {
    "search": search,
    "experts": expert_layers,
    "encoder": encoders,
    "environments": environments,
    "replay": replay,
    "update": updates,
}


def filled(config: Config, rows: int) -> Mixture:
    """Replays of the config's tasks with so many rows of noise each, in whole episodes."""
    replays, random = replays_of(config), np.random.default_rng(0)
    lanes = np.arange(config.data.envs)
    for store in replays:
        task, count = store.task, store.candidates
        for moment in range(rows // len(lanes)):
            over = np.full(len(lanes), moment % 100 == 99, np.uint8)
            drawn = _drawn(task, len(lanes), task.action.width, random)
            store.append(
                lanes,
                np.zeros((len(lanes), *task.observation.shape), task.observation.dtype),
                drawn,
                np.full((len(lanes), count), 1 / count, np.float32),
                np.zeros((len(lanes), count, task.action.width), np.float32),
                np.zeros(len(lanes), np.float32),
                np.zeros(len(lanes), np.float32),
                over,
            )
    return Mixture(replays)


def _rows(count: int, slots: int) -> int:
    """Rows of each slot."""
    if count % slots:
        raise ConfigError(f"--rows {count}: must be a multiple of the {slots} tasks")
    return count // slots


def _drawn(task: Task, envs: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Actions at random, padded to `width`; of a page, the first that it lists."""
    action = np.zeros((envs, width), np.float32)
    match task.action:
        case Continuous(size=size):
            action[:, :size] = random.uniform(-1, 1, (envs, size))
        case Discrete(count=count):
            action[:, 0] = random.integers(count, size=envs)
    return action


def _slopes(layer: Callable[[Experts, Array], Array]) -> Callable[[Experts, Array], Any]:
    """The gradients of a loss behind `layer`, of its weights and of its tokens."""
    loss = lambda both: jnp.sum(jnp.square(layer(*both)))
    return lambda weights, x: eqx.filter_grad(loss)((weights, x))


def _alone(layer: Experts, x: Array) -> Array:
    """What a layer must do for each token: one expert, and the shared one."""
    expert = jax.tree.map(lambda leaf: leaf[0], layer.routed)
    return expert(x) + layer.shared(x)


def _by_all(layer: Experts, x: Array) -> Array:
    """A layer whose tokens go through every expert, as a mixture without routing makes them."""
    every = eqx.filter_vmap(lambda expert: expert(x))(layer.routed)
    return jnp.sum(every, axis=0) + layer.shared(x)
