"""From a config to the things it describes: tasks, tables, a world model, replays."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from scalezero import configure
from scalezero.agent.learner import Learner, learner
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.stages import grow
from scalezero.agent.tasks import TaskTable, in_slot_order, task_table
from scalezero.agent.world import World, world
from scalezero.config import Config, ConfigError
from scalezero.data.replay import Replay
from scalezero.envs.spec import Continuous, Task
from scalezero.run.precision import precision_of

# For XLA, of a program that runs once: compiled in half of the time on a CPU, to the same bits.
ONCE = {"xla_backend_optimization_level": 1}


def tasks_of(config: Config) -> tuple[Task, ...]:
    """The config's tasks with its changes to them, in slot order."""
    return in_slot_order(configure.tasks(config))


def table_of(config: Config) -> TaskTable:
    """What the agent must know of the config's tasks."""
    return task_table(tasks_of(config), config.learn.discount)


class Keys(NamedTuple):
    """The random keys of a run, one for each owner."""

    world: PRNGKeyArray
    act: PRNGKeyArray
    evaluate: PRNGKeyArray


def keys_of(config: Config) -> Keys:
    """The keys that the config's seed stands for."""
    return Keys(*jax.random.split(jax.random.key(config.seed), 3))


def world_of(config: Config, stage: int = 0) -> World:
    """A fresh world model, from the config's seed, with the adapters of `stage`."""
    return _world(config, stage, functools.partial(eqx.filter_jit, compiler_options=ONCE))


def world_shape(config: Config, stage: int = 0) -> World:
    """`world_of` with shapes and types in the place of arrays; none is made."""
    return eqx.filter_eval_shape(lambda: _world(config, stage, lambda make: make))


def _world(config: Config, stage: int, jit: Callable[..., Any]) -> World:
    precision = precision_of(config.model)
    make = lambda key: world(config, table_of(config), precision=precision, key=key)
    fresh = jit(make)(keys_of(config).world)
    if fresh.reader is not None and config.text.encoder == "minilm-finetuned":
        from scalezero.run.sentences import pretrained

        fresh = eqx.tree_at(lambda tree: tree.reader, fresh, pretrained())
    for number in range(stage):
        fresh = growth_of(config, number)(fresh)
    return fresh


def stages_of(config: Config) -> int:
    """How many stages a run may go through."""
    return config.dps.stages if config.dps.on else 1


def optimiser_of(config: Config) -> Optimiser:
    """The optimiser of a run, whose schedule is as long as the run."""
    learnt_from = config.run.decisions - config.data.warmup_decisions
    return Optimiser(config.learn, round(learnt_from * config.learn.replay_ratio))


def learner_of(config: Config, rule: Optimiser, stage: int = 0) -> Learner:
    """A learner that has learnt nothing yet, with the adapters of `stage`."""
    return learner(world_of(config, stage), rule)


def learner_shape(config: Config, rule: Optimiser, stage: int = 0) -> Learner:
    """`learner_of` with shapes and types in the place of arrays; none is made."""
    return eqx.filter_eval_shape(lambda world: learner(world, rule), world_shape(config, stage))


def growth_of(config: Config, stage: int) -> Callable[[World], World]:
    """What takes a world model from `stage` to the next."""
    dps, key = config.dps, jax.random.fold_in(keys_of(config).world, stage)
    return lambda world: grow(
        world,
        dps.rank,
        dps.alpha / dps.rank,
        strengths=dps.scales == "learnt",
        encoder=dps.encoder,
        key=key,
        dropout=dps.dropout,
    )


def candidates_of(task: Task, config: Config) -> int:
    """How many actions a search chooses among in `task`."""
    return config.search.candidates if isinstance(task.action, Continuous) else task.action.count


def groups_of(config: Config) -> int:
    """Groups of environments that take turns: on a CPU they would compete for its cores."""
    groups, here = config.data.groups, jax.default_backend()
    return (1 if here == "cpu" else 2) if groups == "auto" else groups


def rows_of(config: Config) -> int:
    """Environments of each task that one search plans for."""
    return config.data.envs // groups_of(config)


def lanes_of(task: Task, config: Config) -> int:
    """Environments that may write into the replay of `task` at once.

    With dynamic parameter scaling it may be given those of all tasks with its kind of observation.
    """
    if not config.dps.on or config.dps.freed == "stop":
        return config.data.envs
    alike = [each.kind == task.kind for each in tasks_of(config)]
    return config.data.envs * sum(alike)


def replays_of(config: Config) -> tuple[Replay, ...]:
    """An empty replay for each task; they share the byte budget evenly.

    Raises:
        ConfigError: The budget is too small for the environments there are.
    """
    tasks = tasks_of(config)
    share, rows = config.data.replay_bytes // len(tasks), config.data.replay_rows
    try:
        return tuple(
            Replay(task, candidates_of(task, config), share, rows, lanes=lanes_of(task, config))
            for task in tasks
        )
    except ValueError as error:
        raise ConfigError(f"data.replay_bytes, data.replay_rows: {error}") from error
