"""How does a replay outlive its process?

A journal is a folder of *shards*. Each save writes one new shard with the segments that changed
since the last; a checkpoint keeps the names of the shards that together restore the replay. A shard
is written aside, flushed and then renamed, and never changes after: a kill at any moment leaves
every earlier checkpoint whole. Its name ends in a digest of its content, so damage is noticed.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from scalezero.data.growing import FileDamaged
from scalezero.data.replay import Replay
from scalezero.data.segments import NONE

SHARD, PARTIAL = ".npz", ".partial"
LEDGER, COLUMN = "ledger.", "column."  # prefixes of the arrays in a shard


class JournalError(FileDamaged):
    """A replay that cannot be restored; the message names the file and what is wrong with it."""


class Journal:
    """The shards of one replay, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made if missing; what lies in it already is left alone."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.clock = 0  # of the replay at the last save
        self.names: dict[int, str] = {}  # the shards that restore the replay, by number, in order
        self.home = np.zeros(0, np.int64)  # [segment]: the number of the shard that has it, or NONE

    def save(self, replay: Replay) -> tuple[str, ...]:
        """Write what changed; the names of the shards that restore the replay as it is now."""
        store = replay.store
        if self.names and store.clock == self.clock:
            return tuple(self.names.values())
        changed = np.flatnonzero(store.ledger.version > self.clock)
        by_segment = {
            **{LEDGER + name: table for name, table in vars(store.ledger).items()},
            **{
                COLUMN + name: column.reshape(-1, store.length, *column.shape[1:])
                for name, column in store.columns.items()
            },
        }
        number = max(map(_number, self._files(SHARD)), default=-1) + 1
        name = self._write(
            number,
            {
                "layout": np.array(_layout(replay)),
                "counters": np.array([store.clock, replay.decisions, replay.rows]),
                "segment": changed,
                **{key: array[changed] for key, array in by_segment.items()},
            },
        )
        self._adopt(number, name, changed, replay)
        return tuple(self.names.values())

    def restore(self, replay: Replay, shards: Sequence[str]) -> None:
        """Fill a fresh replay from the shards that a save named, and go on journalling from there.

        The replay is exactly what it was, open lanes included. After an error it is spoilt.
        """
        if replay.store.clock:
            raise JournalError(f"{replay.task.name}: only a fresh replay can be restored into")
        store, rows = replay.store, 0
        self.clock, self.names = 0, {}
        for name in shards:
            arrays = self._read(name)
            if arrays["layout"] != _layout(replay):
                raise JournalError(
                    f"{self.folder / name}: was saved as {arrays['layout']}, but the replay is now "
                    f"{_layout(replay)}"
                )
            segment = arrays["segment"]
            for key, table in vars(store.ledger).items():
                table[segment] = arrays[LEDGER + key]
            for key, column in store.columns.items():
                column.reshape(-1, store.length, *column.shape[1:])[segment] = arrays[COLUMN + key]
            store.clock, replay.decisions, rows = arrays["counters"].tolist()
            self._adopt(_number(name), name, segment, replay)
        if replay.rows != rows:
            raise JournalError(
                f"{self.folder}: shards {', '.join(shards)} hold {replay.rows:,} rows, but the "
                f"replay had {rows:,}; they do not belong together"
            )
        store.reopen()

    def prune(self, keep: Iterable[str]) -> None:
        """Delete the shards that are in no kept checkpoint, nor needed by the next save."""
        needed = {*keep, *self.names.values()}
        for name in [*self._files(SHARD), *self._files(PARTIAL)]:
            if name not in needed:
                (self.folder / name).unlink()

    def _adopt(self, number: int, name: str, segment: np.ndarray, replay: Replay) -> None:
        """Note that a shard now holds the newest rows of some segments; forget idle shards."""
        if not self.names:
            self.home = np.full(len(replay.store.held), NONE)
        self.home[segment] = number
        self.names[number] = name
        live = {*np.unique(self.home).tolist(), number}
        self.names = {key: each for key, each in self.names.items() if key in live}
        self.clock = replay.store.clock

    def _files(self, suffix: str) -> list[str]:
        return [path.name for path in self.folder.glob(f"[0-9]*{suffix}")]

    def _write(self, number: int, arrays: Mapping[str, np.ndarray]) -> str:
        aside = self.folder / f"{number:06d}{PARTIAL}"
        with aside.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        name = _name(number, aside)
        os.replace(aside, self.folder / name)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)  # the new name itself must survive a crash of the machine
        os.close(folder)
        return name

    def _read(self, name: str) -> dict[str, np.ndarray]:
        path = self.folder / name
        if not path.is_file():
            raise JournalError(f"{path}: this shard of the replay is missing")
        if _name(_number(name), path) != name:
            raise JournalError(f"{path}: this shard of the replay is damaged")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def _number(name: str) -> int:
    return int(name.partition("-")[0])


def _name(number: int, path: Path) -> str:
    """What a shard with the content of `path` is called."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return f"{number:06d}-{digest}{SHARD}"


def _layout(replay: Replay) -> str:
    """What must be equal for a shard to fit a replay, in words."""
    store = replay.store
    columns = ", ".join(f"{key} {c.dtype}{list(c.shape[1:])}" for key, c in store.columns.items())
    return f"{replay.task.name}: {len(store.held)} segments of {store.length} rows of {columns}"
