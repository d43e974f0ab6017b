"""From a config to the things it describes: tasks, tables, a world model, replays."""

from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from scalezero import configure
from scalezero.agent.tasks import TaskTable, in_slot_order, task_table
from scalezero.agent.world import World, world
from scalezero.config import Config, ConfigError
from scalezero.data.replay import Replay
from scalezero.envs.spec import Discrete, Task


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


def world_of(config: Config) -> World:
    """A fresh world model, from the config's seed."""
    make = eqx.filter_jit(lambda key: world(config, table_of(config), key=key))
    return make(keys_of(config).world)


def candidates_of(task: Task, config: Config) -> int:
    """How many actions a search chooses among in `task`."""
    return task.action.count if isinstance(task.action, Discrete) else config.search.candidates


def replays_of(config: Config) -> tuple[Replay, ...]:
    """An empty replay for each task; they share the byte budget evenly.

    Raises:
        ConfigError: The budget is too small for the environments there are.
    """
    tasks = tasks_of(config)
    share, rows = config.data.replay_bytes // len(tasks), config.data.replay_rows
    try:
        return tuple(
            Replay(task, candidates_of(task, config), share, rows, lanes=config.data.envs)
            for task in tasks
        )
    except ValueError as error:
        raise ConfigError(f"data.replay_bytes, data.replay_rows: {error}") from error
