"""What of a run does somebody need who only wants to use its agent?"""

from pathlib import Path

from scalezero.agent.stages import merge as merged
from scalezero.agent.stages import stage
from scalezero.run.agent import load
from scalezero.run.checkpoint import Checkpoints
from scalezero.run.folder import RunError, RunFolder


def export(run: Path, out: Path, *, merge: bool) -> None:
    """Write the agent saved in `run`, without replay and optimiser, to the directory `out`.

    It can be loaded, evaluated and played like a run, but not trained on.

    Args:
        run: A run directory.
        out: A new directory.
        merge: Whether adapters are folded into the weights they correct: the same outputs, to
            rounding, for less work.

    Raises:
        RunError: There is nothing to load, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is there already; name a new directory")
    agent = load(run)
    world = merged(agent.world) if merge else agent.world
    folder = RunFolder.open(out, agent.config)
    checkpoints = Checkpoints(folder.checkpoints, 1)
    checkpoints.save(0, {"world": world}, {"curriculum": {"stage": stage(world)}})
    checkpoints.close()
