"""How good is the agent? Whole episodes with the search, without exploration."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalezero.agent.act import act, empty_history
from scalezero.agent.ready import ready
from scalezero.agent.world import World
from scalezero.config import Config
from scalezero.envs.pool import Pool
from scalezero.envs.spec import GOES_ON, Task
from scalezero.run.build import rows_of
from scalezero.run.collect import ending_of, observation_of
from scalezero.run.texts import Texts

PROTOCOL = "search-v1"  # search without noise; first episodes of each environment; whole episodes


@dataclass(frozen=True)
class Evaluation:
    """The returns of some episodes of every task."""

    tasks: tuple[Task, ...]
    returns: tuple[tuple[float, ...], ...]
    dropped: Mapping[str, int] = field(default_factory=dict)  # games that died, by "task/dropped"

    @property
    def means(self) -> dict[str, float]:
        """The mean return of each task."""
        pairs = zip(self.tasks, self.returns, strict=True)
        return {task.name: float(np.mean(returns)) for task, returns in pairs}

    def as_json(self) -> dict[str, object]:
        """What `scalezero evaluate --json` prints."""
        return {
            "protocol": PROTOCOL,
            **({"dropped": dict(self.dropped)} if self.dropped else {}),
            "tasks": {
                task.name: {
                    "mean": float(np.mean(returns)),
                    "normalised": task.normalised(float(np.mean(returns))),
                    "returns": list(returns),
                }
                for task, returns in zip(self.tasks, self.returns, strict=True)
            },
        }


def evaluation_of(tasks: Sequence[Task], record: Mapping[str, Any]) -> Evaluation:
    """The evaluation that `Evaluation.as_json` wrote."""
    return Evaluation(
        tuple(tasks), tuple(tuple(record["tasks"][task.name]["returns"]) for task in tasks)
    )


class Evaluator:
    """Environments of their own, made when they are first needed, and whole episodes in them.

    Every environment plays a fixed number of episodes and the first ones count, so that short
    episodes are not favoured.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        numbers: Sequence[int],
        config: Config,
        texts: Texts,
        *,
        seed: int,
    ) -> None:
        """Say which environments; a run starts without waiting for them.

        Args:
            tasks: Which to play, in slot order.
            numbers: Their numbers in the agent's table.
            config: Of the agent.
            texts: What was met in words.
            seed: Of the environments.
        """
        self.tasks = tuple(tasks)
        self.task = jnp.asarray(numbers, jnp.int32)
        self.config = config
        self.rows = rows_of(config)  # as in training, so that nothing is compiled again
        self.seed = seed
        self.texts = texts
        self.pool: Pool | None = None

    def play(
        self,
        world: World,
        episodes: int,
        *,
        key: jax.Array,
        between: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Play `episodes` episodes of every task; they begin alike at every call.

        Args:
            world: The agent.
            episodes: How many of each task.
            key: Consumed.
            between: Called between decisions; may raise.
        """
        world = ready(world)
        quota = episodes // self.rows + (np.arange(self.rows) < episodes % self.rows)
        slots = len(self.tasks)
        history = empty_history(world, slots, self.rows, self.config.search.context)
        pool = self.pool = self.pool or Pool(
            self.tasks, self.rows, seed=self.seed, training=False, read=self.texts.read
        )
        steps = pool.reset()
        first = np.ones((slots, self.rows), bool)
        score = np.zeros((slots, self.rows))
        returns: list[list[list[float]]] = [[[] for _ in quota] for _ in self.tasks]
        done = np.zeros((slots, self.rows), int)
        turn, before = 0, pool.counts()
        while np.any(done < quota):
            between()
            action, _, history = act(
                world,
                self.task,
                history,
                observation_of(steps, world.tasks),
                self.texts.contents(),
                jnp.asarray(first),
                self.config.search,
                jnp.zeros(()),
                key=jax.random.fold_in(key, turn),
            )
            pool.send(np.asarray(action))
            over = ending_of(steps) != GOES_ON
            steps = pool.recv()
            score = np.where(over, 0.0, score) + steps.score
            first, turn = over, turn + 1
            for slot, row in np.argwhere(ending_of(steps) != GOES_ON):
                if done[slot, row] < quota[row]:
                    returns[slot][row].append(float(score[slot, row]))
                    done[slot, row] += 1
        flat = lambda rows: tuple(value for row in rows for value in row)
        counted = Counter(pool.counts())
        counted.subtract(before)
        dropped = {name: n for name, n in counted.items() if n and name.endswith("/dropped")}
        return Evaluation(self.tasks, tuple(flat(rows) for rows in returns), dropped)

    def close(self) -> None:
        """Stop the environments, if there are any yet."""
        if self.pool is not None:
            self.pool.close()


def evaluate(
    run: Path, *, episodes: int, tasks: Sequence[str] | None = None, seed: int = 0
) -> Evaluation:
    """Play `episodes` episodes of some (default: all) tasks with the agent saved in `run`."""
    from scalezero.run.agent import load

    agent = load(run)
    names = [task.name for task in agent.tasks]
    unknown = [name for name in tasks or () if name not in names]
    if unknown:
        raise ValueError(
            f"{run}: {', '.join(unknown)} is not a task of this run; it has {', '.join(names)}"
        )
    numbers = [n for n, name in enumerate(names) if tasks is None or name in tasks]
    played = [agent.tasks[n] for n in numbers]
    evaluator = Evaluator(played, numbers, agent.config, agent.texts, seed=seed)
    try:
        return evaluator.play(agent.world, episodes, key=jax.random.key(seed))
    finally:
        evaluator.close()
