"""How long does `scalezero train` take until the first updates are made, with a warm cache?

    python benchmarks/startup.py --preset dmc6-small --starts 5 --out benchmarks/results/it.json

starts the command so many times, each in a new run directory, and once more before to fill the
cache. Seconds are from the start of the process until what a run needs was imported, the run was
made (model and environments), the decisions of `data.warmup_decisions` were made, and the first
call of updates (`learn.updates_per_call`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHASES = ("imported", "made", "decided", "updated")
BEGAN = "STARTUP_BEGAN"  # when the process was started, for itself


def main() -> None:
    """Measure, print a table, and write a file if asked to."""
    options, settings = parser().parse_known_args()
    if options.child:
        child(options.child, [*settings, "--preset", options.preset])
        return
    from scalezero.run.folder import this_start

    starts = [start(options.preset, settings) for _ in range(1 + options.starts)]
    warm = {name: [each[name] for each in starts[1:]] for name in PHASES}
    told = {
        "command": " ".join(["python", "benchmarks/startup.py", *sys.argv[1:]]),
        "start": this_start(),
        "first": starts[0],
        "warm": warm,
    }
    for name, seconds in warm.items():
        each = ", ".join(f"{value:.1f}" for value in seconds)
        print(f"{name:10} median {statistics.median(seconds):.1f} s ({each})")
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The options; whatever else is given goes to `scalezero train`."""
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--preset", default="dmc6-small", help="(default: dmc6-small)")
    made.add_argument("--starts", type=int, default=5, help="to measure (default: 5)")
    made.add_argument("--out", type=Path, metavar="FILE", help="write all of it to a JSON file")
    made.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return made


def start(preset: str, settings: list[str]) -> dict[str, float]:
    """The seconds of one start, until its process ends itself after its first updates."""
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch, "told.json")
        command = [sys.executable, __file__, "--preset", preset, "--child", str(told), *settings]
        began = os.environ | {BEGAN: repr(time.time())}
        subprocess.run(command, env=began, check=True, stdout=subprocess.DEVNULL)
        return json.loads(told.read_text())


def child(told: Path, arguments: list[str]) -> None:
    """`scalezero train` until the first updates are made, and when it came how far."""
    from scalezero import __main__ as command

    command._ask_for_huge_pages()  # starts this process again, as it does the command
    from scalezero import cli
    from scalezero.config import Config
    from scalezero.run import run as module
    from scalezero.run import train
    from scalezero.run.folder import RunFolder

    began, took = float(os.environ[BEGAN]), {}
    note = lambda name: took.setdefault(name, time.time() - began)

    class Run(module.Run):
        """A run that tells how far it is."""

        def __init__(self, config: Config, folder: RunFolder) -> None:
            note("imported")
            super().__init__(config, folder)
            note("made")

        def turn(self) -> dict[str, float]:
            ended = super().turn()
            if self.decisions >= self.config.data.warmup_decisions:
                note("decided")
            if self.updates:
                self.settle()
                note("updated")
                told.write_text(json.dumps(took))
                os._exit(0)  # and write nothing more
            return ended

    train.Run = Run
    cli.main(["train", "--run", str(told.parent / "run"), *arguments])


if __name__ == "__main__":
    main()
