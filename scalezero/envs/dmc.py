"""How do the DeepMind Control tasks run? In EnvPool, or in dm_control where that is missing.

Both engines show the same state: `dm_control`'s observations, flattened, in its own order of
keys. A decision repeats its action `Task.action_repeat` times; the reward is the sum. Episodes
never terminate: all environments reach the time limit in the same step.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np

from scalezero.envs.spec import (
    Step,
    SuiteMissing,
    Task,
    TaskError,
    VectorEnv,
    seeds,
)

CONTROL_STEPS = 1000  # control steps of every episode of the suite

# MuJoCo paints 12 MB of sky for each environment, in a tenth of a second, and no state shows it.
SKY = "common/skybox.xml"  # among a suite's models
NO_SKY = b"""
<mujoco><asset>
  <texture name="skybox" type="skybox" builtin="flat" width="1" height="1"/>
</asset></mujoco>
"""
MODELS = Path("mujoco", "assets_dmc")  # where EnvPool keeps them

# EnvPool hands out a dict; these are its keys in dm_control's order.
KEYS: Mapping[str, tuple[str, ...]] = {
    "acrobot": ("orientations", "velocity"),
    "ball_in_cup": ("position", "velocity"),
    "cartpole": ("position", "velocity"),
    "cheetah": ("position", "velocity"),
    "finger": ("position", "velocity", "touch", "target_position", "dist_to_target"),
    "hopper": ("position", "velocity", "touch"),
    "pendulum": ("orientation", "velocity"),
    "reacher": ("position", "to_target", "velocity"),
    "walker": ("orientations", "height", "velocity"),
}


def keys(domain: str, task: str) -> tuple[str, ...]:
    """The observation's parts in order. EnvPool's finger-spin has two more, which are dropped."""
    return KEYS[domain][:3] if (domain, task) == ("finger", "spin") else KEYS[domain]


def parts(name: str) -> tuple[str, str]:
    """Domain and task: ("ball_in_cup", "catch") for `dmc/ball_in_cup-catch`."""
    domain, _, task = name.removeprefix("dmc/").partition("-")
    return domain, task


def make(task: Task, envs: int, *, seed: int) -> VectorEnv:
    """Environments of `task` in the engine that `task.options["engine"]` names, or the faster.

    `task.options["threads"]` sets EnvPool's threads; by default an eighth of the cores.
    """
    engine = task.options.get("engine", "auto")
    if engine not in ("auto", "envpool", "dm_control"):
        raise TaskError(
            f"{task.name}: engine = {engine!r} is not one; choose auto, envpool or dm_control"
        )
    if engine != "dm_control":
        try:
            return EnvPool(task, envs, seed)
        except ModuleNotFoundError as error:
            if engine == "envpool":
                raise SuiteMissing(
                    f"{task.name}: envpool is not installed; leave out engine = 'envpool', or "
                    "install it with `pip install envpool`"
                ) from error
    return DmControl(task, envs, seed)


class EnvPool:
    """All environments of one task in EnvPool's C++ threads."""

    def __init__(self, task: Task, envs: int, seed: int) -> None:
        """Start the threads."""
        import envpool

        self._make, self._spec = envpool.make, envpool.make_spec
        domain, name = parts(task.name)
        self.envs = envs
        self._task = task
        self._id = "".join(w.capitalize() for w in f"{domain}_{name}".split("_")) + "-v1"
        self._keys = keys(domain, name)
        self._seeds = seeds(seed, envs).tolist()
        self._engine = self._build()
        self._fresh = True
        self._over = False

    def _build(self):
        # EnvPool's frame_skip is the number of physics steps in a control step, each task's own
        # by default. It is not for repeating actions: `step` does that, and sums the rewards.
        threads = max(1, (os.cpu_count() or 1) // 8)
        with _without_sky(Path(self._spec(self._id).config.base_path)) as base:
            return self._make(
                self._id,
                env_type="gymnasium",
                base_path=str(base),
                num_envs=self.envs,
                seed=self._seeds,
                num_threads=int(self._task.options.get("threads", threads)),
                max_episode_steps=min(
                    CONTROL_STEPS, self._task.max_decisions * self._task.action_repeat
                ),
            )

    def _flat(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        columns = [state[key].reshape(self.envs, -1) for key in self._keys]
        return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind")

    def reset(self) -> np.ndarray:
        """The first observations. EnvPool takes seeds when built only, hence the rebuilding."""
        if not self._fresh:
            self._engine.close()
            self._engine = self._build()
        self._fresh, self._over = False, False
        return self._flat(self._engine.reset()[0])

    def step(self, action: np.ndarray) -> Step:
        """Repeat `action`; on the step after the end, only restart."""
        control = np.clip(action, -1, 1).astype(np.float64)
        reward = np.zeros(self.envs, np.float32)
        for _ in range(1 if self._over else self._task.action_repeat):
            state, part, terminated, truncated, info = self._engine.step(control)
            # The restarting step repeats the last reward of the episode before.
            reward += np.where(info["elapsed_step"] == 0, 0, part)
            truncated = truncated & ~terminated
            ended = terminated | truncated
            if ended.any():
                break
        if ended.any() != ended.all():
            raise RuntimeError("one environment ended before the others, as MuJoCo's state broke")
        self._over = bool(ended.any())
        return Step(self._flat(state), reward, terminated, truncated, reward.copy())

    def close(self) -> None:
        """Stop the threads."""
        self._engine.close()


@contextmanager
def _without_sky(base: Path) -> Iterator[Path]:
    """A folder like EnvPool's `base`, of links to its models, whose sky is a pixel.

    EnvPool reads it while it is made, and never again. Where it keeps its models elsewhere, this is
    `base` itself.
    """
    models = base / MODELS
    if not (models / SKY).exists():
        yield base
        return
    with TemporaryDirectory(prefix="scalezero-dmc-") as folder:
        own = Path(folder, MODELS)
        (own / SKY).parent.mkdir(parents=True)
        for each in (*models.iterdir(), *(models / SKY).parent.iterdir()):
            link = own / each.relative_to(models)
            if not link.exists() and each != models / SKY:
                link.symlink_to(each)
        (own / SKY).write_bytes(NO_SKY)
        yield Path(folder)


_assets_lock = Lock()  # dm_control has one dict of them for all threads


class DmControl:
    """All environments of one task in a Python loop over dm_control itself."""

    def __init__(self, task: Task, envs: int, seed: int) -> None:
        """Nothing is loaded before `reset`."""
        os.environ.setdefault("MUJOCO_GL", "disable")  # states need no renderer
        from dm_control import suite
        from dm_control.suite import common

        self.envs = envs
        self._assets = common.ASSETS
        self._task = task
        self._parts = parts(task.name)
        self._load = suite.load
        self._seeds = seeds(seed, envs)

    def reset(self) -> np.ndarray:
        """The first observations."""
        load = lambda seed: self._load(*self._parts, task_kwargs={"random": int(seed)})
        with _assets_lock:
            sky, self._assets[f"./{SKY}"] = self._assets[f"./{SKY}"], NO_SKY
            try:
                self._engines = [load(seed) for seed in self._seeds]
            finally:
                self._assets[f"./{SKY}"] = sky
        bounds = self._engines[0].action_spec()
        self._low, self._high = bounds.minimum, bounds.maximum
        self._time = 0
        return np.stack([self._flat(e.reset().observation) for e in self._engines])

    @staticmethod
    def _flat(state: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in state.values()], dtype=np.float32)

    def step(self, action: np.ndarray) -> Step:
        """Repeat `action`; on the step after the end, only restart."""
        never = np.zeros(self.envs, bool)
        zero = np.zeros(self.envs, np.float32)
        if self._time == self._limit:
            self._time = 0
            state = np.stack([self._flat(e.reset().observation) for e in self._engines])
            return Step(state, zero, never, never.copy(), zero.copy())
        control = self._low + (np.clip(action, -1, 1) + 1) / 2 * (self._high - self._low)
        repeats = min(self._task.action_repeat, self._limit - self._time)
        self._time += repeats
        rows, reward = [], zero
        for env, engine in enumerate(self._engines):
            for _ in range(repeats):
                timestep = engine.step(control[env])
                reward[env] += timestep.reward
            rows.append(self._flat(timestep.observation))
        truncated = np.full(self.envs, self._time == self._limit)
        return Step(np.stack(rows), reward, never, truncated, reward.copy())

    @property
    def _limit(self) -> int:
        return min(CONTROL_STEPS, self._task.max_decisions * self._task.action_repeat)

    def close(self) -> None:
        """Drop the simulators."""
        self._engines = []
