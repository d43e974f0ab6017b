"""What is a task: what it shows, what it accepts, and how its returns are read.

Observations and actions cross every boundary in one form each:

* an `Image` is `uint8[height, width, channels]`, a `Vector` is `float32[size]`; a `Text` is a
  `Page` when an environment shows it, and numbers in the run's book of texts from there on;
* an action is `float32[width]`. A `Discrete` action has width 1 and holds the index of the choice,
  a `Listed` one the index in the list that the page shows;
  a `Continuous` action has one entry in [-1, 1] for each dimension, already squashed, and the
  environment's adapter maps it to its own bounds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

GOES_ON, TERMINATED, TRUNCATED = 0, 1, 2  # how an episode stands at an observation
NOTHING = -1  # the number of a text that is not there


@dataclass(frozen=True)
class Image:
    """An RGB (or grey) picture, `uint8[height, width, channels]`."""

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return (self.height, self.width, self.channels)

    @property
    def dtype(self) -> np.dtype:
        """The type of one observation's entries."""
        return np.dtype(np.uint8)


@dataclass(frozen=True)
class Vector:
    """A state vector, `float32[size]`."""

    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return (self.size,)

    @property
    def dtype(self) -> np.dtype:
        """The type of one observation's entries."""
        return np.dtype(np.float32)


@dataclass(frozen=True)
class Page:
    """What a text game shows: a text, and the actions that are listed with it."""

    text: str
    actions: tuple[str, ...]  # at least one


@dataclass(frozen=True)
class Text:
    """A `Page`, as the numbers of its texts in the run's book, `int32[1 + choices]`.

    The text's number comes first, then those of the listed actions; `NOTHING` fills the rest.
    """

    choices: int  # the most actions that a page lists

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        return (1 + self.choices,)

    @property
    def dtype(self) -> np.dtype:
        """The type of one observation's entries."""
        return np.dtype(np.int32)


KINDS = (Vector, Image, Text)  # of observations, in the order of a batch's slots


@dataclass(frozen=True)
class Discrete:
    """A choice among `count` actions.

    Tasks with the same `vocabulary` mean the same thing by the same index and share the embedding
    of their actions (the 18 joystick positions of Atari). None: the task's own.
    """

    count: int
    vocabulary: str | None = None

    @property
    def width(self) -> int:
        """Entries of one action."""
        return 1


@dataclass(frozen=True)
class Continuous:
    """A point in [-1, 1]^`size`."""

    size: int

    @property
    def width(self) -> int:
        """Entries of one action."""
        return self.size


@dataclass(frozen=True)
class Listed:
    """A choice among the actions that a page lists, at most `count`."""

    count: int

    @property
    def width(self) -> int:
        """Entries of one action."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """One named task: its spaces, its clock and the scale of its returns."""

    name: str  # "suite/task", as users write it
    observation: Image | Vector | Text
    action: Discrete | Continuous | Listed
    action_repeat: int  # simulator steps (or frames) for each decision
    max_decisions: int  # decisions until the time limit truncates an episode
    floor: float  # the return that normalises to 0: random play, or the lowest possible
    ceiling: float  # the return that normalises to 1 (human, or the largest possible)
    target: float  # the return from which the task counts as solved
    source: str  # where floor, ceiling and target are from
    reward_scale: float = 1.0  # the learner's reward for a reward of 1; scores are not scaled
    discount: float | None = None  # for each decision; without one, the run's
    options: Mapping[str, str | int | float] = field(
        default_factory=dict
    )  # for the suite's adapter

    @property
    def kind(self) -> int:
        """The place of its kind of observation in `KINDS`."""
        return KINDS.index(type(self.observation))

    def normalised(self, score: float) -> float:
        """`score` on the scale where `floor` is 0 and `ceiling` is 1."""
        return (score - self.floor) / (self.ceiling - self.floor)


@dataclass(frozen=True)
class Translation:
    """Between one environment as its author wrote it, and the task that it is to an agent."""

    see: Callable[[Any], np.ndarray]  # its observation as the task's
    act: Callable[[np.ndarray], Any]  # the task's action, `f32[width]`, as its own


@dataclass(frozen=True)
class Step:
    """What every environment of a vector says after one decision, arrays over `env`.

    An episode that ends at decision t shows its *final* observation together with `terminated`
    or `truncated`. The action given next is ignored: it restarts the episode, and the step it
    yields has reward 0 and holds the first observation of the new episode (Gymnasium's
    `AutoresetMode.NEXT_STEP`).
    """

    observation: np.ndarray  # [env, *observation.shape]; of a text task, object[env] of Page
    reward: np.ndarray  # f32[env]: what followed the action just taken
    terminated: np.ndarray  # bool[env]: the episode ended by itself; nothing follows
    truncated: np.ndarray  # bool[env]: the episode was cut by a limit; it would have gone on
    score: np.ndarray  # f32[env]: the reward before any clipping, for reporting


@runtime_checkable  # for beartype in the tests
class VectorEnv(Protocol):
    """Environments of one task that step together, in any engine."""

    envs: int

    def reset(self) -> np.ndarray:
        """Start every environment afresh; the first observations, as in `Step`.

        The same ones at every call, as are the trajectories that follow the same actions. Not
        cheap everywhere: about 0.1 s for each environment of EnvPool and of Atari.
        """
        ...

    def step(self, action: np.ndarray) -> Step:
        """Take one decision `f32[env, width]` in every environment."""
        ...

    def close(self) -> None:
        """Give back processes, threads and memory."""
        ...


def seeds(seed: int, envs: int) -> np.ndarray:
    """A seed for each environment, `i32[env]`, none of them negative."""
    words = np.random.SeedSequence(seed).generate_state(envs)
    return (words >> 1).astype(np.int32)


class SuiteMissing(RuntimeError):
    """A suite whose packages are not installed; the message says what installs it."""


class TaskError(ValueError):
    """A task that cannot be run as it was asked for; the message says why and what to do."""


class UnknownTask(TaskError):
    """A task name that no suite knows; the message suggests a near one."""
