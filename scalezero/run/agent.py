"""A trained agent for people who want to use it: load it, show it what you see, get an action."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalezero.agent.act import act, empty_history
from scalezero.agent.records import History, Observation
from scalezero.agent.world import World
from scalezero.config import Config
from scalezero.envs.catalog import translation
from scalezero.envs.spec import NOTHING, Image, Page, Task, Text, Translation, Vector
from scalezero.run import compiled
from scalezero.run.actor import Actor
from scalezero.run.build import tasks_of, world_shape
from scalezero.run.checkpoint import Checkpoints
from scalezero.run.folder import RunError, RunFolder
from scalezero.run.texts import Texts


class Agent:
    """One model for all of its tasks; plans every action, and remembers each task's context."""

    def __init__(self, world: World, config: Config, tasks: Sequence[Task]) -> None:
        """Use `load` to get one."""
        self.world = world
        self._actor = Actor(world)
        self.config = config
        self.tasks = tuple(tasks)
        self.texts = Texts(config, self.tasks)
        self._numbers = {task.name: number for number, task in enumerate(self.tasks)}
        self._history: dict[str, History] = {}
        self._translations: dict[str, Translation] = {}
        self._key = jax.random.key(config.seed)
        self._turn = 0

    def reset(self, task: str | None = None) -> None:
        """Forget the context of `task` (default: of all); call it when an episode begins."""
        for name in [task] if task else list(self._history):
            self._history.pop(name, None)

    def act(self, observation: Any, task: str) -> Any:
        """The planned action for `observation`, without exploration.

        Args:
            observation: One observation of `task`: of a `gym/` task, as its environment gives it;
                of a task with text, a `Page`; of others, in the shape that `scalezero tasks` lists.
            task: Which of the agent's tasks this is.

        Returns:
            Of a `gym/` task, what its environment takes; of a task with text, one of the page's
            actions; of others, the number of a discrete action, or an array of entries in [-1, 1].

        Raises:
            ValueError: Unknown task, or an observation of another shape.
        """
        if task not in self._numbers:
            raise ValueError(f"{task}: not a task of this agent; it has {', '.join(self._numbers)}")
        spec = self.tasks[self._numbers[task]]
        if task not in self._translations:
            self._translations[task] = self._translation(spec)
        if isinstance(observation, Page) and not isinstance(spec.observation, Text):
            raise ValueError(f"{task}: the observation is a Page, but the task shows no text")
        seen = self._translations[task].see(observation)
        if seen.shape != spec.observation.shape:
            raise ValueError(
                f"{task}: the observation has shape {seen.shape}, but must have "
                f"{spec.observation.shape}"
            )
        context = self.config.search.context
        history = self._history.get(task)
        fresh = history is None
        action, _, self._history[task] = act(
            self._actor.world,
            jnp.array([self._numbers[task]]),
            empty_history(self.world, 1, 1, context) if fresh else history,
            self._as_batch(seen, spec),
            self.texts.contents(),
            jnp.full((1, 1), fresh),
            self.config.search,
            jnp.zeros(()),
            key=jax.random.fold_in(self._key, self._turn),
        )
        self._turn += 1
        taken = np.asarray(action)[0, 0, : spec.action.width]
        if isinstance(spec.observation, Text):
            return observation.actions[int(taken[0])]
        return self._translations[task].act(taken)

    def _translation(self, spec: Task) -> Translation:
        read = self.texts.read
        if not isinstance(spec.observation, Text) or read is None:
            return translation(spec)
        choices = spec.observation.choices

        def see(page: Any) -> np.ndarray:
            if not isinstance(page, Page):
                raise ValueError(
                    f"{spec.name}: the observation is {type(page).__name__}, but must be a Page "
                    "(scalezero.envs.spec) with a text and the actions to choose from"
                )
            if not page.actions:
                raise ValueError(f"{spec.name}: the page lists no action; list at least one")
            return read(np.array([page], object), choices)[0]

        return Translation(see=see, act=lambda action: int(action[0]))

    def _as_batch(self, seen: np.ndarray, spec: Task) -> Observation:
        table = self.world.tasks
        part = lambda kind, shape, fill, dtype: np.full(
            (int(isinstance(spec.observation, kind)), 1, *shape), fill, dtype
        )
        shown = (
            part(Vector, (table.vector_size,), 0, np.float32),
            part(Image, table.image_shape, 0, np.uint8),
            part(Text, (1 + table.most_listed,), NOTHING, np.int32),
        )
        shown[spec.kind][0, 0, ..., : seen.shape[-1]] = seen
        return Observation(*map(jnp.asarray, shown))


def load(run: str | Path) -> Agent:
    """The agent saved in the run directory `run`.

    Raises:
        RunError: There is no run, or no readable checkpoint in it.
    """
    compiled.keep()
    folder = RunFolder.find(Path(run))
    config = folder.config
    checkpoints = Checkpoints(folder.checkpoints, config.run.keep)
    try:
        step = checkpoints.latest
        if step is None:
            raise RunError(f"{run}: has no checkpoint yet; let it train until the first one")
        stage = checkpoints.notes(step)["curriculum"]["stage"]
        shaped = world_shape(config, stage)
        world = checkpoints.restore(step, shaped, under="world.")
    finally:
        checkpoints.close()
    return Agent(world, config, tasks_of(config))
