"""How do TextWorld's games become tasks? Made here, once, by its own generator.

A task is one world: its challenge, settings and seed make always the same game, which is kept in
the user's cache. TextWorld and the interpreter under it (Jericho's, GPL-2) are imported by other
processes only, the one that makes a game and the workers that play it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from hashlib import sha1
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scalezero.envs.recall import folder
from scalezero.envs.spec import Page, Task, Text, VectorEnv
from scalezero.envs.workers import Shown, Workers, require

# The challenge and its settings. A coin is collected at the end of a chain of rooms (5; 10, with a
# dead end beside each). A meal needs ingredients found, prepared as its recipe says, and eaten.
KITCHEN = {"recipe_seed": 1, "split": None, "drop": False}
GAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "coin-easy": ("tw-coin_collector", {"level": 5}),
    "coin-medium": ("tw-coin_collector", {"level": 110}),
    "cooking-1": (
        "tw-cooking",
        KITCHEN | {"recipe": 1, "take": 1, "go": 1, "open": False, "cook": False, "cut": False},
    ),
    "cooking-2": (
        "tw-cooking",
        KITCHEN | {"recipe": 1, "take": 1, "go": 1, "open": True, "cook": True, "cut": True},
    ),
    "cooking-3": (
        "tw-cooking",
        KITCHEN | {"recipe": 2, "take": 2, "go": 6, "open": True, "cook": True, "cut": True},
    ),
}
SEED = 1  # of the worlds, unless a task's options say otherwise
MAKING_SECONDS = 300.0  # for making a game, on a busy machine; it takes 3 to 10
MAKE = (
    "import sys; sys.path[:] = sys.argv[5:]; "
    "from scalezero.envs.textworld import generate; generate(*sys.argv[1:5])"
)
STATUS = re.compile(
    r"(\*\*\* The End \*\*\*.*|>) *-= .* =- *\d+/\d+$"
)  # what the screen's top line says
NEEDLESS = ("inventory", "look")  # what they say is on every page


def make(task: Task, envs: int) -> VectorEnv:
    """Games of `task`.

    Options: `world` (the seed of the generator, 1; another one makes another world, whose scores
    the task's scales do not describe).
    """
    require(task, ("textworld", "jericho"), "textworld")
    return Workers(task, envs, World, task, world(task))


def world(task: Task) -> Path:
    """The file of the task's game, which is made if it is not there yet."""
    challenge, settings = GAMES[task.name.removeprefix("textworld/")]
    seed = task.options.get("world", SEED)
    words = json.dumps(settings, sort_keys=True)
    code = sha1((challenge + words).encode(), usedforsecurity=False).hexdigest()[:8]
    known = f"{task.name.removeprefix('textworld/')}-{seed}-{code}"
    home = folder("textworld") / version("textworld")
    kept = home / known
    if not (kept / "game.z8").is_file():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as temporary:
            _make(task, Path(temporary), challenge, words, str(seed))
            try:
                (Path(temporary) / "made").rename(kept)
            except OSError:  # somebody else has made it meanwhile
                if not (kept / "game.z8").is_file():
                    raise
    return kept / "game.z8"


def _make(task: Task, temporary: Path, challenge: str, words: str, seed: str) -> None:
    """Make a game in another process, whose home is elsewhere: Inform writes there."""
    arguments = [str(temporary / "made" / "game.z8"), challenge, words, seed]
    try:
        subprocess.run(
            [sys.executable, "-c", MAKE, *arguments, *sys.path],
            # The order in which the generator goes through its sets must not change.
            env=os.environ | {"HOME": str(temporary), "PYTHONHASHSEED": "0"},
            cwd=temporary,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MAKING_SECONDS,
            check=True,
            text=True,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"{task.name}: making the game took longer than {MAKING_SECONDS:.0f} s; try again"
        ) from error
    except subprocess.CalledProcessError as error:
        cause = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{task.name}: TextWorld cannot make the game: {cause}") from error


def generate(path: str, challenge: str, settings: str, seed: str) -> None:
    """Make a game in this process, and write it to `path`."""
    from textworld import GameOptions
    from textworld.challenges import CHALLENGES
    from textworld.generator import compile_game

    options = GameOptions()
    options.seeds = int(seed)
    options.path = path
    _, build, _ = CHALLENGES[challenge]
    compile_game(build(json.loads(settings), options), options)


class World:
    """One game of TextWorld."""

    def __init__(self, task: Task, path: Path) -> None:
        """Open the game."""
        import textworld

        assert isinstance(task.observation, Text)
        self._choices = task.observation.choices
        wanted = ("description", "inventory", "admissible_commands", "objective", "max_score")
        infos = textworld.EnvInfos(
            **dict.fromkeys((*wanted, "score", "won", "lost", "policy_commands"), True)
        )
        self._game = textworld.start(str(path), infos)
        self._game.seed(SEED)  # else the interpreter takes the time for one

    def reset(self) -> Shown:
        """Start afresh; the first page begins with the objective."""
        self._state = self._game.reset()
        self._score = 0
        return self._shown(self._state["objective"])

    def step(self, command: str) -> Shown:
        """Give one command."""
        self._state, _, _ = self._game.step(command)
        return self._shown(self._state.feedback)

    def walkthrough(self) -> list[str]:
        """Commands that win the game from here."""
        return list(self._state["policy_commands"])

    def largest(self) -> int:
        """The largest score there is."""
        return int(self._state["max_score"])

    def _shown(self, answer: str | None) -> Shown:
        state = self._state
        reward, self._score = state["score"] - self._score, state["score"]
        admissible = set(state["admissible_commands"]) - set(NEEDLESS)
        actions = listed(admissible, self._choices)
        page = Page(together(answer, state["description"], state["inventory"]), actions)
        over = bool(state["won"] or state["lost"])
        return Shown(page, float(reward), over, {"cut": max(0, len(admissible) - len(actions))})


def listed(admissible: Iterable[str], choices: int) -> tuple[str, ...]:
    """At most `choices` commands in alphabetical order; of more, examining things goes first."""
    order = sorted(admissible, key=lambda each: (each.startswith("examine "), each))
    return tuple(sorted(order[:choices])) or ("look",)


def together(answer: str | None, description: str | None, inventory: str | None) -> str:
    """A page's text: what was answered, unless it is what the place looks like; place; things."""
    answer, description, inventory = map(_joined, (answer, description, inventory))
    answer = STATUS.sub("", answer).replace(description, "").strip(" >")
    parts = (answer, description, inventory)
    return "\n".join(part for part in parts if part)


def _joined(text: str | None) -> str:
    return " ".join((text or "").split())
