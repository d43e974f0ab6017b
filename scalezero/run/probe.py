"""How much memory will a run take? Found by starting it for a moment."""

import json
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
from scalezero.run.build import replays_of, tasks_of
from scalezero.run.folder import RunFolder
from scalezero.run.stop import Stop

MOMENT = 60  # decisions of an episode


@dataclass(frozen=True)
class Memory:
    """Bytes that a run takes at most, in the memory of its own process and on the device."""

    compiling: int  # of a first start, which compiles
    started: int  # of a later one, once it has learnt, evaluated and saved
    filling: int  # more, until it ends: what its replays will hold
    device: int | None  # where that is counted

    @property
    def peak(self) -> int:
        """Of a run that has little to compile, in the end."""
        return self.started + self.filling


def probe(config: Config) -> Memory:
    """What a run of `config` takes, found by two very short ones.

    The first compiles, which takes memory of its own; the second finds the programs kept. Not
    counted, neither here nor in a run's metrics: games in processes of their own, and the later
    stages of a model that grows.

    Raises:
        ConfigError: The run does not start or was killed; the message is its own.
    """
    with TemporaryDirectory(prefix="scalezero-", ignore_cleanup_errors=True) as scratch:
        file = Path(scratch) / "config.toml"
        file.write_text(configure.dump(_short(config)))
        first, second = (_taken(file, Path(scratch) / name) for name in ("first", "second"))
    device = second.get("memory/device_peak_bytes")
    return Memory(
        int(first["memory/peak_bytes"]),
        int(second["memory/peak_bytes"]),
        filling(config),
        None if device is None else int(device),
    )


def filling(config: Config) -> int:
    """Bytes of the replays that a run will have written to by its end."""
    return sum(
        int(replay.bytes * min(1.0, config.run.decisions / len(replay.store.ending)))
        for replay in replays_of(config)
    )


def _short(config: Config) -> Config:
    """`config` for one call's updates, with short episodes."""
    calls = config.learn.updates_per_call
    envs = {
        task.name: config.env.get(task.name, EnvSettings()).model_copy(
            update={"max_decisions": min(MOMENT, task.max_decisions)}
        )
        for task in tasks_of(config)
    }
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"warmup_decisions": 0}),  # so it searches too
            "run": config.run.model_copy(
                update={"updates": calls, "final_episodes": 1, "log_every": 1}
            ),
            "env": {**config.env, **envs},
        }
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
