"""Which tasks are there, and who runs them? Names, shapes, clocks and scales of returns.

The tables need no suite installed: a task can be looked up and listed where it cannot be run.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from math import ceil, nan

import numpy as np

from scalezero.envs.spec import (
    Continuous,
    Discrete,
    Image,
    Listed,
    SuiteMissing,
    Task,
    TaskError,
    Text,
    Translation,
    UnknownTask,
    Vector,
    VectorEnv,
)

# Observation entries, action entries, target. Sources: LightZero's
# `dmc_state_env_space_map.py`, and the targets of its ScaleZero-DPS configuration.
DMC = {
    "acrobot-swingup": (6, 1, 500.0),
    "cartpole-balance": (5, 1, 900.0),
    "cartpole-balance_sparse": (5, 1, 950.0),
    "cartpole-swingup": (5, 1, 750.0),
    "cartpole-swingup_sparse": (5, 1, 750.0),
    "cheetah-run": (17, 6, 550.0),
    "ball_in_cup-catch": (8, 2, 950.0),
    "finger-spin": (9, 2, 800.0),
    "finger-turn_easy": (12, 2, 950.0),
    "finger-turn_hard": (12, 2, 950.0),
    "hopper-hop": (15, 4, 150.0),
    "hopper-stand": (15, 4, 600.0),
    "pendulum-swingup": (3, 1, 800.0),
    "reacher-easy": (6, 2, 900.0),
    "reacher-hard": (6, 2, 900.0),
    "walker-run": (24, 6, 500.0),
    "walker-stand": (24, 6, 900.0),
    "walker-walk": (24, 6, 900.0),
}

# Returns of random play and of a human (the scale of human-normalised scores), and the target:
# the human's return, lowered for some games by LightZero's ScaleZero-DPS configuration.
# The order is that of the benchmark: the first eight are Atari8.
ATARI = {
    "pong": (-20.7, 14.6, 20.0),
    "ms_pacman": (307.3, 6951.6, 6951.6),
    "seaquest": (68.4, 42054.7, 42054.7),
    "boxing": (0.1, 12.1, 12.1),
    "alien": (227.8, 7127.7, 7127.7),
    "chopper_command": (811.0, 7387.8, 7387.8),
    "hero": (1027.0, 30826.4, 30826.4),
    "road_runner": (11.5, 7845.0, 7845.0),
    "amidar": (5.8, 1719.5, 100.5),
    "assault": (222.4, 742.0, 742.0),
    "asterix": (210.0, 8503.3, 1503.3),
    "bank_heist": (14.2, 753.1, 753.1),
    "battle_zone": (2360.0, 37187.5, 12187.5),
    "crazy_climber": (10780.5, 35829.4, 15829.4),
    "demon_attack": (152.1, 1971.0, 1971.0),
    "freeway": (0.0, 29.6, 29.6),
    "frostbite": (65.2, 4334.7, 334.7),
    "gopher": (257.6, 2412.5, 2412.5),
    "jamesbond": (29.0, 302.8, 302.8),
    "kangaroo": (52.0, 3035.0, 3035.0),
    "krull": (1598.0, 2665.5, 2665.5),
    "kung_fu_master": (258.5, 22736.3, 12736.3),
    "private_eye": (24.9, 69571.3, 1001.3),
    "up_n_down": (533.4, 11693.2, 11693.2),
    "qbert": (163.9, 13455.0, 13455.0),
    "breakout": (1.7, 30.5, 30.5),
}

RANDOM = "floor: 1,000 episodes of random play, seed 0"

# Spaces, decisions, floor, ceiling, target, and where the last three are from.
GYM = {
    "CartPole-v1": (
        *(Vector(4), Discrete(2), 500, 22.3, 500.0, 475.0),
        f"{RANDOM}; ceiling: the time limit; target: Gymnasium's threshold",
    ),
    "Acrobot-v1": (
        *(Vector(6), Discrete(3), 500, -498.9, -100.0, -100.0),
        f"{RANDOM}; ceiling and target: Gymnasium's threshold",
    ),
    "MountainCar-v0": (
        *(Vector(2), Discrete(3), 200, -200.0, -110.0, -110.0),
        f"{RANDOM}; ceiling and target: Gymnasium's threshold",
    ),
    "MountainCarContinuous-v0": (
        *(Vector(2), Continuous(1), 999, -33.1, 100.0, 90.0),
        f"{RANDOM}; ceiling: the reward of the goal; target: Gymnasium's threshold",
    ),
    "Pendulum-v1": (
        *(Vector(3), Continuous(1), 200, -1221.5, 0.0, -200.0),
        f"{RANDOM}; ceiling: no return is larger; target: what good controllers reach",
    ),
}

# Most actions listed, decisions (both LightZero's), floor, ceiling, target.
JERICHO = {
    "detective": (12, 100, 64.4, 360.0, 289.7),
    "omniquest": (25, 100, 4.6, 50.0, 16.8),
    "acorncourt": (45, 50, 0.0, 30.0, 10.0),
    "zork1": (55, 500, -1.3, 350.0, 103.0),
}
PLAYED = (
    "floor: random play, 50, 12, 2 and 20 episodes; ceiling: the largest score; target: the best "
    "published learner (CALM-DRRN, TDQN, DRRN, XTX)"
)

# Most actions listed, decisions, floor, and the largest score. The worlds: `textworld.py`.
TEXTWORLD = {
    "coin-easy": (8, 10, 0.18, 1.0),
    "coin-medium": (8, 50, 0.09, 1.0),
    "cooking-1": (60, 30, 0.63, 3.0),
    "cooking-2": (60, 50, 1.25, 5.0),
    "cooking-3": (60, 60, 1.33, 8.0),
}
GENERATED = (
    "floor: random play, 300, 100, 200, 100 and 73 episodes; ceiling and target: the largest score"
)

TOY = {
    "catch": (
        *(Image(64, 64, 3), Discrete(3), 35, -2.5, 5.0, 4.5),
        "exact: 5 balls over 8 columns, a paddle 2 wide that reaches every ball",
    ),
    "chain": (
        *(Vector(6), Discrete(2), 20, 0.452, 1.0, 0.95),
        "exact: the chance that a random walk of 20 steps gets from the first cell to the sixth",
    ),
    "corridor": (
        *(Text(4), Listed(4), 8, 0.565, 8.0, 7.0),
        "exact: 8 rooms, each passed by chance with 1/2, 1/3 or 1/4; the sum of (13/36)^1 … ^8",
    ),
    "count": (Vector(4), Discrete(3), 7, nan, nan, nan, "none: for tests of alignment"),
    "target": (
        *(Vector(2), Continuous(2), 20, 20 / 3, 20.0, 18.0),
        "exact: two uniform points of [-1, 1] lie 2/3 apart on average",
    ),
}


def names() -> tuple[str, ...]:
    """Every task known by name; `gym/` takes any other Gymnasium id too.

    So do `atari/` its other games, and `jericho/` the story files in the user's folder.
    """
    tables = {"atari": ATARI, "dmc": DMC, "gym": GYM, "toy": TOY}
    tables |= {"jericho": JERICHO, "textworld": TEXTWORLD}
    return tuple(f"{suite}/{name}" for suite, table in tables.items() for name in table)


def find(name: str, **changes: object) -> Task:
    """The task called `name`, with any of its fields changed.

    A changed `action_repeat` keeps the length of an episode in simulator steps, so it changes
    `max_decisions` unless that is given too.
    """
    suite, _, local = name.partition("/")
    match suite:
        case "atari" if local in ATARI:
            task = _atari(name, *ATARI[local], "random and human play: UniZero, Table 10")
        case "atari" if local:
            task = _other_atari(name, local)
        case "dmc" if local in DMC:
            task = _dmc(name, *DMC[local])
        case "gym" if local in GYM:
            task = _plain(name, *GYM[local])
        case "gym" if local:
            from scalezero.envs import gym

            task = gym.describe(name)
        case "jericho" if local in JERICHO:
            task = _text(name, *JERICHO[local], reward_scale=0.1, source=PLAYED)
        case "jericho" if local:
            task = _other_story(name, local, changes)
        case "textworld" if local in TEXTWORLD:
            *row, ceiling = TEXTWORLD[local]
            task = _text(name, *row, ceiling, ceiling, source=GENERATED)
        case "toy" if local in TOY:
            task = _plain(name, *TOY[local])
        case _:
            raise unknown(name)
    return _changed(task, changes)


def unknown(name: str) -> UnknownTask:
    """The error for a name that is no task, with the nearest one that is."""
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "`scalezero tasks` lists them all"
    if "," in name:
        hint = "names are separated by spaces, not commas"
    return UnknownTask(f"{name}: no such task; {hint}")


def make(task: Task, envs: int, *, seed: int, training: bool) -> VectorEnv:
    """`envs` environments of `task` that step together.

    Args:
        seed: Equal seeds and equal actions give equal trajectories.
        training: Whether Atari's rewards are clipped and a lost life ends an episode.
    """
    suite = task.name.partition("/")[0]
    try:
        match suite:
            case "atari":
                from scalezero.envs import atari

                return atari.make(task, envs, seed=seed, training=training)
            case "dmc":
                from scalezero.envs import dmc

                return dmc.make(task, envs, seed=seed)
            case "gym":
                from scalezero.envs import gym

                return gym.make(task, envs, seed=seed)
            case "jericho":
                from scalezero.envs import jericho

                return jericho.make(task, envs)
            case "textworld":
                from scalezero.envs import textworld

                return textworld.make(task, envs)
            case "toy":
                from scalezero.envs import toy

                return toy.make(task, envs, seed=seed)
            case _:
                raise unknown(task.name)
    except ModuleNotFoundError as error:
        raise missing(task.name, error) from error


def require(task: Task) -> None:
    """Raise a `TaskError` if what the user must bring for `task` is not there."""
    if task.name.startswith("jericho/"):
        from scalezero.envs import jericho

        jericho.story(task)


def translation(task: Task) -> Translation:
    """For an agent that plays `task` in an environment of its user's."""
    if task.name.startswith("gym/"):
        from scalezero.envs import gym

        return gym.translation(task)
    discrete = isinstance(task.action, Discrete | Listed)
    return Translation(
        see=lambda state: np.asarray(state, task.observation.dtype),
        act=lambda action: int(action[0]) if discrete else action,
    )


def missing(name: str, error: ModuleNotFoundError) -> SuiteMissing:
    """The error for a task whose suite is not installed, with the command that installs it."""
    suite = name.partition("/")[0]
    package = f"'scalezero[{suite}]'" if suite in ("atari", "dmc") else error.name
    return SuiteMissing(
        f"{name}: the package {error.name} is missing; install it with `pip install {package}`"
    )


def _changed(task: Task, changes: dict[str, object]) -> Task:
    repeat = changes.get("action_repeat", task.action_repeat)
    if not isinstance(repeat, int) or repeat < 1:
        raise TaskError(f"{task.name}: action_repeat = {repeat!r} must be a whole number ≥ 1")
    if repeat != task.action_repeat and not task.name.startswith(("dmc/", "atari/")):
        raise TaskError(f"{task.name}: action_repeat = {repeat}, but only dmc/ and atari/ have one")
    derived: dict[str, object] = {
        "max_decisions": ceil(task.max_decisions * task.action_repeat / repeat)
    }
    if task.name.startswith("dmc/"):
        derived["reward_scale"] = 1 / repeat
    try:
        return replace(task, **(derived | changes))
    except TypeError as error:
        raise TaskError(f"{task.name}: a task cannot be changed so: {error}") from error


def _dmc(name: str, size: int, width: int, target: float) -> Task:
    repeat = 8 if name.startswith("dmc/pendulum") else 4
    return Task(
        name=name,
        observation=Vector(size),
        action=Continuous(width),
        action_repeat=repeat,
        max_decisions=1000 // repeat,
        floor=0.0,
        ceiling=1000.0,
        target=target,
        source="floor, ceiling: rewards lie in [0, 1]; target: LightZero's DPS configuration",
        reward_scale=1 / repeat,
    )


def _atari(name: str, floor: float, ceiling: float, target: float, source: str) -> Task:
    return Task(
        name=name,
        observation=Image(64, 64, 3),
        action=Discrete(18, vocabulary="atari"),
        action_repeat=4,
        max_decisions=5000,
        floor=floor,
        ceiling=ceiling,
        target=target,
        source=source,
    )


def _other_atari(name: str, local: str) -> Task:
    try:
        from ale_py import roms
    except ModuleNotFoundError as error:
        raise unknown(name) from error
    if local not in roms.get_all_rom_ids():
        raise unknown(name)
    return _atari(name, nan, nan, nan, "none: not one of the 26 games")


def _text(
    name: str,
    choices: int,
    decisions: int,
    floor: float,
    ceiling: float,
    target: float,
    *,
    source: str,
    reward_scale: float = 1.0,
) -> Task:
    scales = (decisions, floor, ceiling, target, source)
    return replace(_plain(name, Text(choices), Listed(choices), *scales), reward_scale=reward_scale)


def _other_story(name: str, local: str, changes: dict[str, object]) -> Task:
    from scalezero.envs import jericho

    options = changes.get("options")
    games = options.get("games") if isinstance(options, Mapping) else None
    if local not in jericho.stories(games):
        raise UnknownTask(
            f"{name}: no such task; choose {', '.join(JERICHO)}, or for another of Jericho's games "
            f"name a folder that has {local}.z5 with --jericho-games or {jericho.VARIABLE}"
        )
    row = (*JERICHO["zork1"][:2], nan, nan, nan)
    return _text(name, *row, reward_scale=0.1, source="none: not one of the four games")


def _plain(
    name: str,
    observation: Image | Vector | Text,
    action: Discrete | Continuous | Listed,
    decisions: int,
    floor: float,
    ceiling: float,
    target: float,
    source: str,
) -> Task:
    return Task(
        name=name,
        observation=observation,
        action=action,
        action_repeat=1,
        max_decisions=decisions,
        floor=floor,
        ceiling=ceiling,
        target=target,
        source=source,
    )
