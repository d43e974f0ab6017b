"""What works on this machine, what does not, and which command repairs it?"""

import platform
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scalezero.envs import catalog
from scalezero.envs.jericho import VARIABLE
from scalezero.envs.spec import SuiteMissing, TaskError, Text
from scalezero.run.folder import versions

# One task of each suite, quick to make.
PROBES = {
    "toy": "toy/catch",
    "gym": "gym/CartPole-v1",
    "dmc": "dmc/cartpole-balance",
    "atari": "atari/pong",
    "jericho": "jericho/detective",
    "textworld": "textworld/coin-easy",
}
EXTRAS = ("dmc", "atari", "jericho", "textworld")
CORE = ("toy", "gym")


@dataclass(frozen=True)
class Finding:
    """Whether one part works."""

    works: bool
    says: str  # what was seen: the devices, the task stepped, or what is wrong
    fix: str | None = None  # the command that repairs it


def examine() -> dict[str, Finding]:
    """Look at the devices, and make and step one environment of each suite."""
    suites = {suite: _suite(suite) for suite in PROBES}
    return {"devices": _devices(), **suites, "text": _encoder()}


def healthy(findings: dict[str, Finding]) -> bool:
    """Whether a run can start at all; a suite that is an extra may be missing."""
    return all(findings[part].works for part in ("devices", *CORE))


def as_json(findings: dict[str, Finding]) -> dict[str, Any]:
    """The findings and every version, for `json.dumps`."""
    return {
        "healthy": healthy(findings),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "findings": {part: asdict(finding) for part, finding in findings.items()},
    }


def _devices() -> Finding:
    try:
        import jax

        kinds = [device.device_kind for device in jax.devices()]
        platforms = {device.platform for device in jax.devices()}
    except Exception as error:  # whatever goes wrong is the answer here
        return Finding(False, _cause(error), "pip install --force-reinstall jax")
    if platforms == {"cpu"} and shutil.which("nvidia-smi"):
        says = f"{', '.join(kinds)}; there is an NVIDIA GPU, but JAX does not see it"
        return Finding(True, says, _install("cuda"))
    return Finding(True, ", ".join(kinds))


def _encoder() -> Finding:
    """Whether tasks with text can be read."""
    from scalezero.run.sentences import Tokeniser

    try:
        pieces = Tokeniser(16).lexicon
    except SuiteMissing as error:
        return Finding(False, str(error), _install("text"))
    return Finding(True, f"the sentence encoder knows {pieces:,} word pieces")


def _suite(suite: str) -> Finding:
    task = catalog.find(PROBES[suite])
    try:
        env = catalog.make(task, 2, seed=0, training=False)
        shown = env.reset()
        env.step(np.zeros((2, task.action.width), np.float32))
        env.close()
    except TaskError as error:  # what Jericho plays, its user brings
        named = suite == "jericho" and f"export {VARIABLE}=<a folder of story files>"
        return Finding(False, str(error), named or None)
    except Exception as error:  # whatever goes wrong is the answer here
        fix = _install(suite) if suite in EXTRAS else "pip install --force-reinstall gymnasium"
        return Finding(False, _cause(error), fix)
    text = isinstance(task.observation, Text)
    size = "text" if text else "×".join(map(str, shown.shape[1:]))
    return Finding(True, f"{task.name} runs ({type(env).__name__}, shows {size})")


def _install(extra: str) -> str:
    return f"pip install 'scalezero[{extra}]'"


def _cause(error: Exception) -> str:
    """`error` in one line."""
    if isinstance(error, SuiteMissing):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
