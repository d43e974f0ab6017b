"""How large would a run be? Parameters and bytes, before anything is made."""

import statistics
import time
from dataclasses import dataclass
from math import prod

import equinox as eqx
import jax
import jax.numpy as jnp
import psutil
from jaxtyping import Array, PyTree
from rich.console import Console
from rich.table import Table

from scalezero.agent.act import empty_history
from scalezero.agent.learner import Learner, update_many
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.search import sown
from scalezero.agent.stages import trainable
from scalezero.agent.world import World
from scalezero.config import Config, ConfigError
from scalezero.data.replay import Replay
from scalezero.envs.spec import Task
from scalezero.run import compiled, inputs
from scalezero.run.build import (
    candidates_of,
    lanes_of,
    learner_of,
    learner_shape,
    rows_of,
    stages_of,
    tasks_of,
)
from scalezero.run.inputs import library_shape
from scalezero.run.probe import Memory, probe

TIMED = 5  # calls of which the median counts


@dataclass(frozen=True)
class StageSizes:
    """What the model and its optimiser take at one stage of dynamic parameter scaling."""

    parameters: int
    trained: int
    model_bytes: int
    optimiser_bytes: int
    update_seconds: float | None = None  # measured, if it was asked for


@dataclass(frozen=True)
class Sizes:
    """What a run takes. Activations, programs and simulators come on top of its arrays."""

    parameters: dict[str, int]  # by part of the world model
    bytes: dict[str, int]  # by what holds them
    stages: tuple[StageSizes, ...]  # the one there is, unless the model is to grow
    memory: Memory | None = None  # measured, if it was asked for

    def show(self, console: Console | None = None) -> None:
        """Print the tables."""
        console = console or Console()
        table = Table("part of the model")
        table.add_column("parameters", justify="right")
        for part, count in self.parameters.items():
            table.add_row(part, f"{count:,}")
        table.add_section()
        table.add_row("all", f"{sum(self.parameters.values()):,}")
        console.print(table)
        table = Table("memory")
        table.add_column("bytes", justify="right")
        for part, count in self.bytes.items():
            table.add_row(part, f"{count:,}")
        table.add_section()
        table.add_row("all", f"{sum(self.bytes.values()):,}")
        if self.memory is not None:
            table.add_section()
            table.add_row("measured, compiling what was not kept", f"{self.memory.compiling:,}")
            table.add_row("measured, with all of it kept", f"{self.memory.started:,}")
            table.add_row("at the end, with full replays", f"{self.memory.peak:,}")
            if self.memory.device is not None:
                table.add_row("measured, on the device", f"{self.memory.device:,}")
        table.add_row("this machine's memory", f"{psutil.virtual_memory().total:,}")
        console.print(table)
        if len(self.stages) > 1 or self.stages[0].update_seconds is not None:
            self._show_stages(console)

    def _show_stages(self, console: Console) -> None:
        table = Table("stage")
        headings = ["parameters", "trained", "bytes of the model", "bytes of the optimiser"]
        timed = self.stages[0].update_seconds is not None
        for heading in [*headings, *(["ms for an update"] if timed else [])]:
            table.add_column(heading, justify="right")
        for number, each in enumerate(self.stages):
            counts = (each.parameters, each.trained, each.model_bytes, each.optimiser_bytes)
            cells = [f"{count:,}" for count in counts]
            if each.update_seconds is not None:
                cells.append(f"{1000 * each.update_seconds:.2f}")
            table.add_row(str(number), *cells)
        console.print(table)


def check(config: Config, *, timed: bool = False, probed: bool = False) -> Sizes:
    """The sizes of the run that `config` describes.

    Args:
        config: Of the run.
        timed: Whether to measure an update at each stage, which compiles and runs it.
        probed: Whether to start a run for a moment, to see how much memory it takes.
    """
    compiled.keep()
    tasks = tasks_of(config)
    rule = Optimiser(config.learn, 1)
    state = learner_shape(config, rule)
    library = library_shape(config)
    parts = {name: getattr(state.world, name) for name in World.__dataclass_fields__}
    counts = {name: sum(x.size for x in arrays(part)) for name, part in parts.items()}
    return Sizes(
        parameters={name: count for name, count in counts.items() if count},
        bytes={
            "model": held(state.world),
            "target model": held(state.target),
            "optimiser": held(state.moments),
            **({"library of texts": held(library)} if library.size else {}),
            "search tree": tree_bytes(state.world, config),
            "batches of one call": batch_bytes(tasks, state.world, config),
            "replay when full": sum(replay_bytes(task, len(tasks), config) for task in tasks),
        },
        stages=tuple(stage_sizes(config, n, timed=timed) for n in range(stages_of(config))),
        memory=probe(config) if probed else None,
    )


def stage_sizes(config: Config, stage: int, *, timed: bool) -> StageSizes:
    """The sizes at one stage, and if `timed` how long an update takes."""
    state = learner_shape(config, Optimiser(config.learn, 1), stage)
    trained = eqx.filter_eval_shape(moving, state.world)
    return sizes_of(state, trained, update_seconds(config, stage) if timed else None)


def moving(world: World) -> World:
    """The leaves of `world` that train now."""
    return eqx.filter(world, trainable(world))


def sizes_of(state: Learner, trained: World, update_seconds: float | None) -> StageSizes:
    """The sizes of a learner and of what `moving` says of it, or of their shapes."""
    count = lambda tree: sum(leaf.size for leaf in arrays(tree))
    model, optimiser = held(state.world), held(state.moments)
    return StageSizes(count(state.world), count(trained), model, optimiser, update_seconds)


def update_seconds(config: Config, stage: int) -> float:
    """Seconds that one update takes at one stage: the median of `TIMED` calls, once compiled."""
    rule, learn = Optimiser(config.learn, 1), config.learn
    state = learner_of(config, rule, stage)
    task, batches = inputs.batches(config, key=jax.random.key(0))
    library, took = inputs.library(config, key=jax.random.key(1)), []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        state, metrics = update_many(state, batches, task, library, learn, rule)
        jax.block_until_ready((state, metrics))
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:]) / learn.updates_per_call


def tree_bytes(world: World, config: Config) -> int:
    """The trees of one search over a group of the environments of every task."""
    slots, rows, table = world.tasks.tasks, rows_of(config), world.tasks

    def root(world: World, library: Array) -> PyTree:
        bound = world.bind(jnp.arange(slots), table.vector_tasks, library)
        history = empty_history(world, slots, rows, config.search.context)
        listing = bound.listing(
            jnp.zeros((table.text_tasks, rows, 1 + table.most_listed), jnp.int32)
        )
        return sown(bound, history, listing, config.search, jnp.zeros(()), key=jax.random.key(0))

    return held(eqx.filter_eval_shape(root, world, library_shape(config)))


def batch_bytes(tasks: tuple[Task, ...], world: World, config: Config) -> int:
    """The batches of all updates that are compiled into one call."""
    learn, table = config.learn, world.tasks
    ahead = learn.unroll + learn.n_step
    vectors, texts = table.vector_tasks, table.text_tasks
    pictures = len(tasks) - vectors - texts
    seen = vectors * 4 * table.vector_size + pictures * prod(table.image_shape)
    seen += texts * 4 * (1 + table.most_listed)
    candidates = max(candidates_of(task, config) for task in tasks)
    window = (
        (ahead + 1) * (seen + len(tasks) * 2)  # observations; how each ends and whether known
        + ahead * len(tasks) * 4 * (table.action_width + 1)  # actions and rewards
        + learn.unroll * len(tasks) * candidates * (4 * table.action_width + 4 + 1)
    )
    return learn.updates_per_call * learn.rows * window


def replay_bytes(task: Task, tasks: int, config: Config) -> int:
    """What `task` remembers once its replay is full; untouched memory costs nothing till then."""
    share, rows = config.data.replay_bytes // tasks, config.data.replay_rows
    try:
        return Replay(
            task, candidates_of(task, config), share, rows, lanes=lanes_of(task, config)
        ).bytes
    except ValueError as error:
        raise ConfigError(f"data.replay_bytes, data.replay_rows: {error}") from error
    except MemoryError:  # more than this machine could ever hold
        return share


def arrays(tree: PyTree) -> list[jax.ShapeDtypeStruct | Array]:
    """The arrays of a tree, or of one of shapes."""
    kinds = (jax.ShapeDtypeStruct, jax.Array)
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, kinds)]


def held(tree: PyTree) -> int:
    """Bytes of the arrays of a tree, or of one of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays(tree))
