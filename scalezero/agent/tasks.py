"""What the agent must know of its tasks, as tables that a batch's task numbers index.

Which tasks a batch holds is data, not shape: everything that differs between tasks is looked up
here by number, so a changed mix never recompiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scalezero.config import ConfigError
from scalezero.envs.spec import Continuous, Discrete, Image, Listed, Task, Text, Vector


@dataclass(frozen=True)
class TaskTable:
    """The run's tasks in slot order: with vectors first, then with pictures, then with text."""

    names: tuple[str, ...]
    vector_tasks: int  # the first so many show vectors
    text_tasks: int  # the last so many show text
    vector_size: int  # of the widest
    image_shape: tuple[int, ...]  # height, width, channels; zeros where there are no pictures
    choices: tuple[int, ...]  # the most actions of each task; 0 for a continuous one
    dimensions: tuple[int, ...]  # entries of each continuous task's action; 0 for a discrete one
    vocabulary: tuple[int, ...]  # which table embeds each discrete task's actions
    reward_scale: tuple[float, ...]  # the learner's reward for a reward of 1
    discount: tuple[float, ...]  # for each decision

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def most_listed(self) -> int:
        """The most actions that a page lists."""
        return max(self.choices[self.tasks - self.text_tasks :], default=0)

    @property
    def action_width(self) -> int:
        """Entries of the widest action."""
        return max(1, *self.dimensions)

    @property
    def most_choices(self) -> int:
        """Actions of the largest discrete task."""
        return max(self.choices)

    @property
    def vocabularies(self) -> int:
        """How many different sets of discrete actions there are."""
        return max(self.vocabulary) + 1

    def candidates(self, sampled: int) -> int:
        """The largest number of actions that any task's search chooses among."""
        return max(self.most_choices, sampled if any(self.dimensions) else 0)

    def offers(self, sampled: int) -> set[int]:
        """How many actions a search may have to choose among; a page lists any number of them."""
        own = self.choices[: self.tasks - self.text_tasks]
        return {count or sampled for count in own} | set(range(1, 1 + self.most_listed))

    def look_up(self, task: Int[Array, " slot"]) -> "SlotTable":
        """The rows of the table that a batch's slots need."""
        pick = lambda column: jnp.asarray(column)[task]
        return SlotTable(
            choices=pick(self.choices),
            dimensions=pick(self.dimensions),
            vocabulary=pick(self.vocabulary),
            reward_scale=pick(jnp.asarray(self.reward_scale, jnp.float32)),
            discount=pick(jnp.asarray(self.discount, jnp.float32)),
        )


class SlotTable(eqx.Module):
    """The table's rows for the slots of one batch."""

    choices: Int[Array, " slot"]
    dimensions: Int[Array, " slot"]
    vocabulary: Int[Array, " slot"]
    reward_scale: Float[Array, " slot"]
    discount: Float[Array, " slot"]

    @property
    def discrete(self) -> Bool[Array, " slot"]:
        """Whether each slot's task chooses among numbered actions, its own or those of a list."""
        return self.choices > 0


def in_slot_order(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """`tasks`, those with vectors first, with text last; otherwise in the order given."""
    return tuple(sorted(tasks, key=lambda task: task.kind))


def task_table(tasks: Sequence[Task], discount: float) -> TaskTable:
    """The table of `tasks`, which are in slot order; `discount` is that of tasks without their own.

    Raises:
        ConfigError: Two tasks show pictures of different shapes, or a task lists actions without
            showing text.
    """
    vectors = [t.observation.size for t in tasks if isinstance(t.observation, Vector)]
    shapes = {t.observation.shape for t in tasks if isinstance(t.observation, Image)}
    if len(shapes) > 1:
        raise ConfigError(
            f"tasks: pictures have the shapes {sorted(shapes)}, but one run needs one shape; "
            "resize them in the environments"
        )
    for task in tasks:
        if isinstance(task.observation, Text) != isinstance(task.action, Listed):
            raise ConfigError(
                f"{task.name}: shows {task.observation} and takes {task.action}, but a page of "
                "text and actions listed on it come together"
            )
    books: dict[str, int] = {}
    vocabulary = []
    for task in tasks:
        match task.action:
            case Discrete(vocabulary=shared):
                vocabulary.append(books.setdefault(shared or task.name, len(books)))
            case Listed():
                vocabulary.append(books.setdefault(task.name, len(books)))
            case Continuous():
                vocabulary.append(0)
    return TaskTable(
        names=tuple(t.name for t in tasks),
        vector_tasks=len(vectors),
        text_tasks=sum(isinstance(t.observation, Text) for t in tasks),
        vector_size=max(vectors, default=0),
        image_shape=next(iter(shapes), (0, 0, 0)),
        choices=tuple(0 if isinstance(t.action, Continuous) else t.action.count for t in tasks),
        dimensions=tuple(t.action.size if isinstance(t.action, Continuous) else 0 for t in tasks),
        vocabulary=tuple(vocabulary),
        reward_scale=tuple(t.reward_scale for t in tasks),
        discount=tuple(discount if t.discount is None else t.discount for t in tasks),
    )
