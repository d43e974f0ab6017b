"""How does any Gymnasium environment become a task? By its spaces, once, when it is named.

Observations: a `uint8` picture becomes 64×64 RGB; anything else that Gymnasium can flatten becomes
a vector (a `Discrete` one, one-hot). Actions: `Discrete`, `MultiDiscrete` and `MultiBinary` become
one choice among all combinations; a bounded `Box` is reached from [-1, 1].
"""

import importlib
from collections.abc import Callable
from contextlib import closing
from math import nan

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from scalezero.envs.spec import (
    Continuous,
    Discrete,
    Image,
    Step,
    SuiteMissing,
    Task,
    TaskError,
    Translation,
    UnknownTask,
    Vector,
    VectorEnv,
    seeds,
)

SIDE = 64  # pictures are resized to this many pixels, both ways
CHOICES = 4096  # most combinations of actions that are still one choice
LIMIT = 1000  # decisions, for an environment that sets no time limit itself


def describe(name: str) -> Task:
    """The task that a Gymnasium id stands for, read off one environment.

    `name` is `gym/<id>` or, for an environment that registers itself when a module is imported,
    `gym/<module>:<id>`.
    """
    spec = _spec(name)
    try:
        env = gymnasium.make(spec, disable_env_checker=True)
    except gymnasium.error.DependencyNotInstalled as error:
        raise _dependency(name, error) from error
    with closing(env):
        return Task(
            name=name,
            observation=_observation(name, env.observation_space),
            action=_action(name, env.action_space),
            action_repeat=1,
            max_decisions=spec.max_episode_steps or LIMIT,
            floor=nan,
            ceiling=nan,
            target=nan,
            source="none known: set floor, ceiling and target to see normalised scores",
        )


def make(task: Task, envs: int, *, seed: int) -> VectorEnv:
    """Environments of `task`, in the vector they bring themselves where they do."""
    if task.action_repeat != 1:
        raise TaskError(
            f"{task.name}: action_repeat = {task.action_repeat}, but Gymnasium "
            "environments take 1; repeat actions in a wrapper of the environment"
        )
    try:
        return Gym(task, envs, seed)
    except gymnasium.error.DependencyNotInstalled as error:
        raise _dependency(task.name, error) from error


class Gym:
    """All environments of one task in a Gymnasium vector."""

    def __init__(self, task: Task, envs: int, seed: int) -> None:
        """Make the environments."""
        self.envs = envs
        self._engine, self._own = _vector(task, envs)
        # A vector that an environment brings has one random stream, the others one each.
        self._seed = int(seeds(seed, 1)[0]) if self._own else seeds(seed, envs).tolist()
        self._see = _see(self._engine.single_observation_space)
        self._act = _act(self._engine.single_action_space)
        self._over = np.zeros(envs, bool)

    def reset(self) -> np.ndarray:
        """The first observations."""
        self._over = np.zeros(self.envs, bool)
        return self._see(self._engine.reset(seed=self._seed)[0])

    def step(self, action: np.ndarray) -> Step:
        """Take one decision; where an episode has just ended, restart."""
        state, reward, terminated, truncated, _ = self._engine.step(self._act(action))
        reward = np.where(self._over, 0, reward).astype(np.float32)
        terminated = terminated & ~self._over
        truncated = truncated & ~terminated & ~self._over
        self._over = terminated | truncated
        return Step(self._see(state), reward, terminated, truncated, reward.copy())

    def close(self) -> None:
        """Close the environments."""
        self._engine.close()


def translation(task: Task) -> Translation:
    """What `env.reset` and `env.step` of the environment itself speak, and what the task does."""
    with closing(gymnasium.make(_spec(task.name), disable_env_checker=True)) as env:
        seen, taken = env.observation_space, env.action_space
    see, act = _see(seen), _act(taken)
    plain = _is_picture(seen) or _is_vector(seen)
    flat = lambda state: np.asarray(state if plain else spaces.flatten(seen, state))
    return Translation(
        see=lambda state: see(flat(state)[None])[0],
        act=lambda action: act(action[None])[0],
    )


def _vector(task: Task, envs: int) -> tuple[gymnasium.vector.VectorEnv, bool]:
    """A vector that restarts on the step after the end, and whether the environment brought it."""
    spec = _spec(task.name)
    if spec.vector_entry_point and spec.max_episode_steps and not spec.additional_wrappers:
        engine = gymnasium.make_vec(
            spec, envs, "vector_entry_point", max_episode_steps=task.max_decisions
        )
        space = engine.single_observation_space
        plain = _is_picture(space) or _is_vector(space)
        if plain and engine.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP:
            return engine, True
        engine.close()
    engine = gymnasium.make_vec(
        spec,
        envs,
        "sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
        wrappers=[_flattened],  # pyright: ignore[reportArgumentType] - an Env will do
        disable_env_checker=True,
        max_episode_steps=task.max_decisions,
    )
    return engine, False


def _spec(name: str) -> EnvSpec:
    """What Gymnasium has registered under `gym/<id>`, importing `<module>` first."""
    module, _, identity = name.removeprefix("gym/").rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(identity)
    except gymnasium.error.UnregisteredEnv as error:
        raise UnknownTask(f"{name}: no such Gymnasium environment: {_sentence(error)}") from error
    except ModuleNotFoundError as error:
        raise UnknownTask(
            f"{name}: the module {error.name} cannot be imported; run where it can, or install it"
        ) from error


def _flattened(env: gymnasium.Env) -> gymnasium.Env:
    space = env.observation_space
    if _is_picture(space) or _is_vector(space):
        return env
    return gymnasium.wrappers.FlattenObservation(env)


def _is_vector(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _is_picture(space: spaces.Space) -> bool:
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and (space.shape[-1] in (1, 3) or space.shape[0] in (1, 3))
    )


def _observation(name: str, space: spaces.Space) -> Image | Vector:
    if _is_picture(space):
        return Image(SIDE, SIDE, 3)
    if not space.is_np_flattenable:
        raise TaskError(
            f"{name}: its observations, {space}, cannot be flattened to a vector; "
            "wrap the environment so that they are a Box, Discrete, or a Dict or Tuple of those"
        )
    return Vector(spaces.flatdim(space))


def _counts(space: spaces.Space) -> tuple[int, ...] | None:
    """How many choices there are along each part of a discrete action; None if it is not one."""
    match space:
        case spaces.Discrete():
            return (int(space.n),)
        case spaces.MultiDiscrete():
            return tuple(int(n) for n in space.nvec.ravel())
        case spaces.MultiBinary():
            return (2,) * int(np.prod(space.shape))
    return None


def _action(name: str, space: spaces.Space) -> Discrete | Continuous:
    counts = _counts(space)
    if counts is not None:
        total = int(np.prod(counts, dtype=np.float64))
        if total > CHOICES:
            raise TaskError(
                f"{name}: its actions combine to {total} choices, more than {CHOICES}; "
                "wrap the environment so that it takes fewer"
            )
        return Discrete(total)
    if isinstance(space, spaces.Box) and space.is_bounded():
        return Continuous(int(np.prod(space.shape)))
    raise TaskError(
        f"{name}: its actions, {space}, are neither choices nor a bounded Box; "
        "wrap the environment so that they are"
    )


def _see(space: spaces.Space) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a batch of the engine's observations into ours; never a view of them."""
    if not _is_picture(space) or space.shape is None:
        return lambda state: np.array(state, np.float32)
    first = space.shape[-1] not in (1, 3)
    height, width = space.shape[1:] if first else space.shape[:2]
    rows, columns = _areas(height), _areas(width)

    def shrink(state: np.ndarray) -> np.ndarray:
        state = np.moveaxis(state, 1, -1) if first else state
        small = np.einsum("rh,ehwc->erwc", rows, state.astype(np.float32), optimize=True)
        small = np.einsum("sw,erwc->ersc", columns, small, optimize=True)
        small = np.rint(small).astype(np.uint8)
        return np.repeat(small, 3, -1) if small.shape[-1] == 1 else small

    return shrink


def _areas(pixels: int) -> np.ndarray:
    """`f32[SIDE, pixels]`: how much of each old pixel lies in each new one; rows sum to 1."""
    edges = np.linspace(0, pixels, SIDE + 1)
    old = np.arange(pixels)
    low = np.maximum(edges[:-1, None], old)
    high = np.minimum(edges[1:, None], old + 1)
    return (np.clip(high - low, 0, None) * SIDE / pixels).astype(np.float32)


def _act(space: spaces.Space) -> Callable[[np.ndarray], np.ndarray]:
    """What turns a batch of our actions into the engine's."""
    if isinstance(space, spaces.Box):
        middle = (space.high.astype(np.float64) + space.low) / 2
        half = (space.high.astype(np.float64) - space.low) / 2

        def reach(action: np.ndarray) -> np.ndarray:
            point = middle + np.clip(action, -1, 1).reshape(-1, *space.shape) * half
            if np.issubdtype(space.dtype, np.integer):
                point = np.rint(point)
            return np.clip(point, space.low, space.high).astype(space.dtype)

        return reach
    if isinstance(space, spaces.Discrete):
        return lambda action: action[:, 0].astype(space.dtype) + space.start
    counts, shape = _counts(space) or (), space.shape or ()
    start = space.start if isinstance(space, spaces.MultiDiscrete) else 0

    def pick(action: np.ndarray) -> np.ndarray:
        parts = np.stack(np.unravel_index(action[:, 0].astype(np.int64), counts), axis=-1)
        return (parts.reshape(-1, *shape) + start).astype(space.dtype)

    return pick


def _dependency(name: str, error: Exception) -> SuiteMissing:
    return SuiteMissing(f"{name}: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
