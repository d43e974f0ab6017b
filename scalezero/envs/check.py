"""Does an environment keep the promises of `spec.py`? A test that anyone can run on a task."""

import hashlib

import numpy as np

from scalezero.envs.catalog import make
from scalezero.envs.spec import Discrete, Listed, Page, Step, Task, Text


def check(
    task: Task, *, envs: int = 2, decisions: int | None = None, seed: int = 0, chance: bool = True
) -> None:
    """Raise a `ValueError` that says which promise `task` breaks, if it breaks one.

    Args:
        task: What to check, both as it trains and as it is evaluated.
        envs: How many environments to step together.
        decisions: How long to play; by default somewhat longer than an episode may last.
        seed: Of the environments. The actions are always the same, and often at the bounds.
        chance: Whether another seed must give another trajectory.
    """
    decisions = task.max_decisions + 2 if decisions is None else decisions
    for training in (True, False):
        first = _play(task, envs, decisions, seed, training)
        again = _play(task, envs, decisions, seed, training)
        _require(task, first == again, "the same seed and actions gave another trajectory")
    if chance:
        other = _play(task, envs, decisions, seed + 1, training=False)
        _require(task, first != other, "another seed gave the same trajectory; is the seed used?")


def _require(task: Task, kept: bool, broken: str) -> None:
    if not kept:
        raise ValueError(f"{task.name}: {broken}")


def _play(task: Task, envs: int, decisions: int, seed: int, training: bool) -> list[str]:
    """A fingerprint of what each decision led to, every promise checked on the way."""
    random = np.random.default_rng(0)
    env = make(task, envs, seed=seed, training=training)
    try:
        shown = env.reset()
        _check_observation(task, envs, shown)
        second = env.reset()
        _require(task, np.array_equal(shown, second), "reset() twice shows different beginnings")
        prints = [_print(shown)]
        over, age = np.zeros(envs, bool), np.zeros(envs, int)
        for _ in range(decisions):
            before = shown.copy()
            step = env.step(_actions(task, shown, random))
            _require(task, np.array_equal(before, shown), "step() changes observations given out")
            _check_observation(task, envs, step.observation)
            _check_outcome(task, envs, step)
            age = np.where(over, 0, age + 1)
            over = _check_clock(task, step, over, age)
            shown = step.observation
            prints.append(_print(*vars(step).values()))
    finally:
        env.close()
    return prints


def _print(*arrays: np.ndarray) -> str:
    parts = (repr(list(a)).encode() if a.dtype == object else a.tobytes() for a in arrays)
    return hashlib.sha1(b"".join(parts), usedforsecurity=False).hexdigest()


def _actions(task: Task, shown: np.ndarray, random: np.random.Generator) -> np.ndarray:
    shape = (len(shown), task.action.width)
    if isinstance(task.action, Listed):
        lengths = np.array([[len(page.actions)] for page in shown])
        return random.integers(lengths).astype(np.float32)
    if isinstance(task.action, Discrete):
        return random.integers(task.action.count, size=shape).astype(np.float32)
    inside = random.uniform(-1, 1, shape)
    return np.where(random.random(shape) < 0.25, np.sign(inside), inside).astype(np.float32)


def _check_observation(task: Task, envs: int, shown: np.ndarray) -> None:
    if isinstance(task.observation, Text):
        _check_pages(task, envs, task.observation.choices, shown)
        return
    wanted = (envs, *task.observation.shape)
    _require(
        task,
        shown.shape == wanted and shown.dtype == task.observation.dtype,
        f"shows {shown.dtype}{list(shown.shape)}, not {task.observation.dtype}{list(wanted)}",
    )
    _require(task, bool(np.isfinite(shown).all()), "shows an observation that is not finite")


def _check_pages(task: Task, envs: int, choices: int, shown: np.ndarray) -> None:
    wanted = shown.shape == (envs,) and all(isinstance(page, Page) for page in shown)
    _require(task, wanted, f"shows {shown.dtype}{list(shown.shape)}, not object[{envs}] of Page")
    for page in shown:
        texts = isinstance(page.actions, tuple) and all(
            isinstance(text, str) for text in (page.text, *page.actions)
        )
        _require(task, texts, "shows a page whose text or actions are not strings")
        count = len(page.actions)
        _require(
            task,
            1 <= count <= choices,
            f"lists {count} actions, but 1 to {choices} can be listed",
        )
        _require(task, len(set(page.actions)) == count, "lists an action twice")


def _check_outcome(task: Task, envs: int, step: Step) -> None:
    for name, dtype in (
        ("reward", np.float32),
        ("score", np.float32),
        ("terminated", np.bool_),
        ("truncated", np.bool_),
    ):
        value = getattr(step, name)
        _require(
            task,
            value.shape == (envs,) and value.dtype == dtype,
            f"{name} is {value.dtype}{list(value.shape)}, not {np.dtype(dtype)}[{envs}]",
        )
        _require(task, bool(np.isfinite(value).all()), f"{name} is not finite")
    both = step.terminated & step.truncated
    _require(task, not both.any(), "an episode is both terminated and truncated; terminated wins")


def _check_clock(task: Task, step: Step, over: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Check the step after an end, and the time limit; whether each episode ended now."""
    ended = step.terminated | step.truncated
    quiet = (step.reward == 0) & (step.score == 0) & ~ended
    _require(
        task,
        bool(quiet[over].all()),
        "the step after an end must restart the episode, with reward 0 and no end",
    )
    limit = task.max_decisions
    _require(
        task, bool((ended | (age < limit)).all()), f"an episode is longer than {limit} decisions"
    )
    return ended
