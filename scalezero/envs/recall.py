"""Where is what was expensive to find out kept, across runs and between processes?"""

import json
import os
import sqlite3
from pathlib import Path

STATES = 100_000  # most states remembered of one game; the oldest go first
WAIT_SECONDS = 30.0  # for another process that writes


def folder(suite: str) -> Path:
    """The folder for what can be found out again: `$SCALEZERO_CACHE`, or the user's cache."""
    own = os.environ.get("SCALEZERO_CACHE")
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(own) if own else shared / "scalezero") / suite


class Recall:
    """Lists of words by the state of a game, in a file that many processes read and write.

    A memory that cannot be written (a full or read-only disk) forgets, and does no harm.
    """

    def __init__(self, path: Path, states: int = STATES) -> None:
        """Open the file, or make it.

        Args:
            path: The file, an SQLite data base.
            states: How many states to keep.
        """
        self._states = states
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = OFF")  # a crash may cost memories, not truth
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS known "
                "(age INTEGER PRIMARY KEY, state TEXT UNIQUE NOT NULL, words TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error):
            self._base = sqlite3.connect(":memory:", isolation_level=None)
            self._base.execute("CREATE TABLE known (age INTEGER PRIMARY KEY, state UNIQUE, words)")

    def find(self, state: str) -> tuple[str, ...] | None:
        """The words of `state`, or None if they are not known."""
        try:
            row = self._base.execute("SELECT words FROM known WHERE state = ?", (state,)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else tuple(json.loads(row[0]))

    def keep(self, state: str, words: tuple[str, ...]) -> None:
        """Remember the words of `state`, unless there are some already."""
        try:
            self._base.execute(
                "INSERT OR IGNORE INTO known (state, words) VALUES (?, ?)",
                (state, json.dumps(words)),
            )
            self._base.execute(
                "DELETE FROM known WHERE age <= (SELECT max(age) FROM known) - ?", (self._states,)
            )
        except sqlite3.Error:
            return

    def close(self) -> None:
        """Close the file."""
        self._base.close()
