"""What did some runs reach? Their evaluations in one JSON file, and their curves in one figure.

    python benchmarks/results.py runs/quickstart-s0 runs/quickstart-s1 --out docs/results/quickstart

writes `quickstart.json` (per run: the config, what it ran on, every evaluation with the return of
every episode) and `quickstart.png` (return against decisions and against wall time, a line for each
run). With `--losses` it takes one run, and its metrics in place of evaluations.
"""

import argparse
import json
from pathlib import Path

from scalezero.run.folder import RunFolder


def of_run(path: Path) -> dict:
    """One run: what was asked, on what it ran, what it reached and when."""
    folder = RunFolder.find(path)
    start = folder.about()["starts"][-1]
    return {
        "name": path.name,
        "seed": folder.config.seed,
        "config": folder.config.model_dump(exclude_none=True),
        "ran_on": {
            key: start[key] for key in ("commit", "platform", "cores", "devices", "packages")
        },
        "evaluations": json.loads(folder.evaluations.read_text())
        if folder.evaluations.exists()
        else [],
        "training": training_of(folder),
    }


def training_of(folder: RunFolder) -> dict[str, dict[str, float]]:
    """What each task's episodes of training reached, exploration and all."""
    scores: dict[str, list[float]] = {}
    for line in map(json.loads, folder.episodes.read_text().splitlines()):
        scores.setdefault(line["task"], []).append(line["score"])
    return {
        task: {
            "episodes": len(each),
            "best": max(each),
            "mean_of_last_100": sum(each[-100:]) / len(each[-100:]),
        }
        for task, each in scores.items()
    }


def draw(runs: list[dict], path: Path) -> None:
    """The mean return of every evaluation, a panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(runs[0]["evaluations"][-1]["tasks"])
    figure, panels = plt.subplots(
        2, len(tasks), figsize=(2.6 * len(tasks), 5), sharey="col", squeeze=False, layout="tight"
    )
    for column, task in enumerate(tasks):
        for run in runs:
            lines = run["evaluations"]
            means = [line["tasks"][task]["mean"] for line in lines]
            label = run["name"]
            panels[0][column].plot([e["decisions"] / 1000 for e in lines], means, ".-", label=label)
            panels[1][column].plot([e["seconds"] / 60 for e in lines], means, ".-", label=label)
        panels[0][column].set_title(task, fontsize=9)
        panels[0][column].set_xlabel("1,000 decisions of each task")
        panels[1][column].set_xlabel("minutes, all tasks")
    panels[0][0].set_ylabel("return")
    panels[1][0].set_ylabel("return")
    if len(runs) > 1:
        panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


PARTS = ("latent", "reward", "value", "policy")


def metrics_of(path: Path) -> list[dict]:
    """Every line of metrics: speed, and the losses of each task."""
    lines = [json.loads(line) for line in RunFolder.find(path).metrics.read_text().splitlines()]
    kept = ("decisions", "updates", "seconds", "decisions_per_second", "updates_per_second")
    is_loss = lambda key: key.rpartition("/")[0].endswith("/loss") or key.endswith("/return")
    return [{k: v for k, v in line.items() if k in kept or is_loss(k)} for line in lines]


def draw_losses(run: dict, path: Path) -> None:
    """The parts of the loss, a line for each task, and the speed of all tasks together."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = run["metrics"]
    figure, panels = plt.subplots(
        1, len(PARTS) + 1, figsize=(3 * len(PARTS) + 3, 3), layout="tight"
    )
    at = [line["decisions"] / 1000 for line in lines]
    for panel, part in zip(panels, PARTS, strict=False):
        for task in run["config"]["tasks"]:
            panel.plot(at, [line.get(f"{task}/loss/{part}") for line in lines], label=task)
        panel.set_title(f"{part} loss", fontsize=9)
    panels[-1].plot(at, [line["decisions_per_second"] for line in lines])
    panels[-1].set_title("decisions/s", fontsize=9)
    for panel in panels:
        panel.set_xlabel("1,000 decisions of each task")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Read the command line, write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", required=True, type=Path, help="path without its ending")
    parser.add_argument("--losses", action="store_true", help="of one run, in place of returns")
    options = parser.parse_args()
    runs = [of_run(path) for path in options.runs]
    if options.losses:
        run = runs[0] | {"metrics": metrics_of(options.runs[0])}
        options.out.with_suffix(".json").write_text(json.dumps({"runs": [run]}, indent=1) + "\n")
        draw_losses(run, options.out.with_suffix(".png"))
        return
    options.out.with_suffix(".json").write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    draw(runs, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
