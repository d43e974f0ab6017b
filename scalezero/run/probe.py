"""How much memory will a run take? Found by starting it for a moment."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scalezero import configure
from scalezero.config import Config, ConfigError, EnvSettings
from scalezero.run.build import replays_of, tasks_of
from scalezero.run.folder import RunFolder

MOMENT = 60  # decisions of each task, and of an episode


@dataclass(frozen=True)
class Memory:
    """Bytes that a run takes at most, in the memory of its own process and on the device."""

    started: int  # once it has learnt, evaluated and saved
    filling: int  # more, until it ends: what its replays will hold
    device: int | None  # where that is counted

    @property
    def peak(self) -> int:
        """At the end."""
        return self.started + self.filling


def probe(config: Config) -> Memory:
    """What a run of `config` takes, found by two very short ones.

    The first compiles, which takes memory of its own, and the programs are kept; the second counts.
    Games in processes of their own are not counted, neither here nor in a run's metrics.

    Raises:
        ConfigError: The run does not start; the message is its own.
    """
    with TemporaryDirectory(prefix="scalezero-") as scratch:
        file = Path(scratch) / "config.toml"
        file.write_text(configure.dump(_short(config)))
        for name in ("compiles", "counts"):
            folder = RunFolder(Path(scratch) / name, config)
            took = _peak(["train", "--config", str(file), "--run", str(folder.path)])
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    device = [line.get("memory/device_peak_bytes") for line in lines]
    return Memory(took, filling(config), int(device[-1]) if device and device[-1] else None)


def filling(config: Config) -> int:
    """Bytes of the replays that a run will have written to by its end."""
    return sum(
        int(replay.bytes * min(1.0, config.run.decisions / len(replay.store.ending)))
        for replay in replays_of(config)
    )


def _short(config: Config) -> Config:
    """`config` for one call's updates, with short episodes."""
    learn, data = config.learn, config.data
    calls = learn.updates_per_call
    envs = {
        task.name: config.env.get(task.name, EnvSettings()).model_copy(
            update={"max_decisions": min(MOMENT, task.max_decisions)}
        )
        for task in tasks_of(config)
    }
    return config.model_copy(
        update={
            "data": data.model_copy(
                update={"warmup_decisions": min(MOMENT, data.warmup_decisions)}
            ),
            "run": config.run.model_copy(
                update={"updates": calls, "final_episodes": 1, "log_every": 1}
            ),
            "env": {**config.env, **envs},
        }
    )


def _peak(arguments: list[str]) -> int:
    """The most bytes that `scalezero` had in memory, called with these arguments."""
    with subprocess.Popen(
        [sys.executable, "-m", "scalezero", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"check --memory: a run of a moment failed: {last}")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
