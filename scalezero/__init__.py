"""One world model that learns many tasks at once, and plans with it.

`train(config, folder)` trains, `load("runs/x")` gives a trained `Agent`; both are imported when
first used, so that this import stays light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalezero.config import Config
    from scalezero.run.agent import Agent, load
    from scalezero.run.train import train

__all__ = ["Agent", "Config", "load", "train"]

_HOMES = {
    "Agent": "scalezero.run.agent",
    "Config": "scalezero.config",
    "load": "scalezero.run.agent",
    "train": "scalezero.run.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scalezero' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
