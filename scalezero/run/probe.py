"""How much memory will a run take? Found by starting it for a moment."""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scalezero import configure
from scalezero.config import Config, ConfigError, EnvSettings
from scalezero.run.build import replays_of, stages_of, tasks_of
from scalezero.run.folder import RunFolder
from scalezero.run.stop import Stop

MOMENT = 60  # decisions of an episode


@dataclass(frozen=True)
class Memory:
    """Bytes that a run takes at most, in the memory of its own process and on the device."""

    compiling: int  # of a start that compiles what was not kept before it
    started: int  # of one that finds all of it kept, and has learnt, evaluated and saved
    filling: int  # more, until it ends: what its replays will hold
    device: int | None  # where that is counted

    @property
    def peak(self) -> int:
        """Of a run that has little to compile, in the end."""
        return self.started + self.filling


def probe(config: Config) -> Memory:
    """What a run of `config` takes, found by two very short ones.

    The first compiles what no run kept before, which takes memory of its own; the second finds
    all programs kept. Not counted: games in processes of their own, which a run's metrics leave out
    too; the encoder's programs for more or longer new texts than there are in a moment; and what is
    compiled anew when a library of texts is full.

    Raises:
        ConfigError: The run does not start or was killed; the message is its own.
    """
    with TemporaryDirectory(prefix="scalezero-", ignore_cleanup_errors=True) as scratch:
        file = Path(scratch) / "config.toml"
        file.write_text(configure.dump(moment(config)))
        first, second = (_taken(file, Path(scratch) / name) for name in ("first", "second"))
    device = second.get("memory/device_peak_bytes")
    return Memory(
        int(first["memory/peak_bytes"]),
        int(second["memory/peak_bytes"]),
        filling(config),
        None if device is None else int(device),
    )


def moment(config: Config) -> Config:
    """A run of two calls' updates or more at each stage, by the programs of a run of `config`.

    Episodes are short. It begins at random if `config` does, then searches, beside updates too
    (nothing is written between, which would wait for these), and its learning rate is that of the
    whole run.
    """
    calls, warmup = config.learn.updates_per_call, config.data.warmup_decisions
    at_random = min(1, warmup)
    due = math.ceil(4 * config.learn.replay_ratio * config.data.envs)  # when updates begin, or less
    decisions = max(1, config.run.decisions - warmup + at_random)
    envs = {
        task.name: config.env.get(task.name, EnvSettings()).model_copy(
            update={"max_decisions": min(MOMENT, task.max_decisions)}
        )
        for task in tasks_of(config)
    }
    changes = {
        "data": {"warmup_decisions": at_random},
        "run": {
            "decisions": decisions,
            "updates": 2 * calls * stages_of(config) + due,
            "evaluate_every": decisions,  # no task is solved, and no stage skipped
            "log_every": decisions,
            "final_episodes": 1,
        },
        "dps": {"first_updates": 0, "stage_updates": min(config.dps.stage_updates, calls + 1)},
    }
    sections = {
        name: getattr(config, name).model_copy(update=change) for name, change in changes.items()
    }
    return config.model_copy(update={**sections, "env": {**config.env, **envs}})


def filling(config: Config) -> int:
    """Bytes of the replays that a run will have written to by its end."""
    return sum(
        int(replay.bytes * min(1.0, config.run.decisions / len(replay.store.ending)))
        for replay in replays_of(config)
    )


def _taken(config: Path, path: Path) -> dict[str, Any]:
    """What a run of `config` in `path` says of its memory when it ends."""
    run_in(["train", "--config", str(config), "--run", str(path)])
    ends = [json.loads(line) for line in RunFolder.find(path).events.read_text().splitlines()]
    return ends[-1]


def run_in(arguments: list[str]) -> None:
    """Call `scalezero` with these arguments; it ends with this process, however that ends.

    Raises:
        ConfigError: It failed.
    """
    command = [sys.executable, "-m", "scalezero", *arguments]
    with (
        Stop() as stop,
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        said = None
        try:
            while said is None:
                stop.check()
                with suppress(subprocess.TimeoutExpired):
                    _, said = process.communicate(timeout=0.5)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        why = "probably for want of memory" if name == "SIGKILL" else "by another process"
        raise ConfigError(f"check --memory: the run was ended by {name}, {why}")
    if process.returncode:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"check --memory: a run of a moment failed: {last}")
