"""How large would a run be? Parameters and bytes, before anything is made."""

from dataclasses import dataclass
from math import prod

import equinox as eqx
import jax
import jax.numpy as jnp
import psutil
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

from scalezero.agent.act import empty_history
from scalezero.agent.learner import Learner
from scalezero.agent.optimiser import optimiser
from scalezero.agent.stages import trainable
from scalezero.agent.world import World
from scalezero.config import Config, ConfigError
from scalezero.data.replay import Replay
from scalezero.envs.spec import Task
from scalezero.run.build import candidates_of, lanes_of, learner_of, tasks_of


@dataclass(frozen=True)
class StageSizes:
    """What the model and its optimiser take at one stage of dynamic parameter scaling."""

    parameters: int
    trained: int
    model_bytes: int
    optimiser_bytes: int


@dataclass(frozen=True)
class Sizes:
    """What a run takes. Activations and the simulators come on top."""

    parameters: dict[str, int]  # by part of the world model
    bytes: dict[str, int]  # by what holds them
    stages: tuple[StageSizes, ...]  # the one there is, unless the model is to grow

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
        table.add_row("this machine's memory", f"{psutil.virtual_memory().total:,}")
        console.print(table)
        if len(self.stages) > 1:
            self._show_stages(console)

    def _show_stages(self, console: Console) -> None:
        table = Table("stage")
        for heading in ("parameters", "trained", "bytes of the model", "bytes of the optimiser"):
            table.add_column(heading, justify="right")
        for number, each in enumerate(self.stages):
            cells = (each.parameters, each.trained, each.model_bytes, each.optimiser_bytes)
            table.add_row(str(number), *(f"{cell:,}" for cell in cells))
        console.print(table)


def check(config: Config) -> Sizes:
    """The sizes of the run that `config` describes."""
    tasks = tasks_of(config)
    rule = optimiser(config.learn, 1)
    state: Learner = eqx.filter_eval_shape(lambda: learner_of(config, rule))
    stages = config.dps.stages if config.dps.on else 1
    parts = {name: getattr(state.world, name) for name in World.__dataclass_fields__}
    counts = {name: sum(x.size for x in arrays(part)) for name, part in parts.items()}
    return Sizes(
        parameters={name: count for name, count in counts.items() if count},
        bytes={
            "model": held(state.world),
            "target model": held(state.target),
            "optimiser": held(state.moments),
            "search tree": tree_bytes(state.world, config),
            "batches of one call": batch_bytes(tasks, state.world, config),
            "replay when full": sum(replay_bytes(task, len(tasks), config) for task in tasks),
        },
        stages=tuple(stage_sizes(config, stage) for stage in range(stages)),
    )


def stage_sizes(config: Config, stage: int) -> StageSizes:
    """The sizes at one stage."""

    def make() -> tuple[Learner, PyTree]:
        state = learner_of(config, optimiser(config.learn, 1), stage)
        return state, eqx.filter(state.world, trainable(state.world))

    state, trained = eqx.filter_eval_shape(make)
    count = lambda tree: sum(leaf.size for leaf in arrays(tree))
    return StageSizes(count(state.world), count(trained), held(state.world), held(state.moments))


def tree_bytes(world: World, config: Config) -> int:
    """The tree of one search over half of the environments of every task."""
    slots, rows = world.tasks.tasks, config.data.envs // 2

    def root(world: World) -> PyTree:
        bound = world.bind(jnp.arange(slots), world.tasks.vector_tasks)
        feature, cache = bound.root(empty_history(world, slots, rows, config.search.context))
        key = jax.random.key(0)
        return cache, *bound.policy(feature).propose(jnp.zeros(()), key=key)

    cache, actions, prior = eqx.filter_eval_shape(root, world)
    words = 5 * slots * rows + 6 * prior.size  # mctx: of each node, and of each of its children
    return (config.search.simulations + 1) * (held(cache) + held(actions) + 4 * words)


def batch_bytes(tasks: tuple[Task, ...], world: World, config: Config) -> int:
    """The batches of all updates that are compiled into one call."""
    learn, table = config.learn, world.tasks
    ahead = learn.unroll + learn.n_step
    vectors, pictures = table.vector_tasks, len(tasks) - table.vector_tasks
    seen = vectors * 4 * table.vector_size + pictures * prod(table.image_shape)
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


def arrays(tree: PyTree) -> list[jax.ShapeDtypeStruct]:
    """The arrays of a tree of shapes."""
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.ShapeDtypeStruct)]


def held(tree: PyTree) -> int:
    """Bytes of the arrays of a tree of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays(tree))
