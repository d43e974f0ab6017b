"""What does dynamic parameter scaling save? Every arm of docs/stages.md trained and compared.

    python benchmarks/scaling.py runs/scaling --seeds 0 1 --out docs/results/dps

trains each arm of `benchmarks/scaling/` with each seed, one after the other (give the same command
again to go on), then writes `dps.json` and `dps.png`. `--no-train` compares what is there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import scalezero
from scalezero import configure
from scalezero.agent.curriculum import goal
from scalezero.config import Config
from scalezero.run.folder import RunFolder

ARMS = Path(__file__).parent / "scaling"
SINGLE = "single"  # one agent for each task, with the dense model
NAMES = {
    "moe": "mixture of experts",
    "moe_dps": "mixture of experts + DPS, solved tasks stop",
    "moe_dps_share": "mixture of experts + DPS, solved tasks share",
    "moe_stop": "mixture of experts, solved tasks stop, no growth",
    "dense": "dense multi-task",
    SINGLE: "one dense agent a task",
}

TOTALS = ("until_solved", "total_interactions")
SPARING = {"moe_dps", "moe_dps_share", "moe_stop"}  # where solved tasks leave


def parts(arm: str, seed: int) -> dict[str, Config]:
    """The runs that one arm takes with one seed, by the name of their directory."""
    file = ARMS / ("dense.toml" if arm == SINGLE else f"{arm}.toml")
    make = lambda tasks: configure.resolve(file=file, tasks=tasks, flags={"seed": str(seed)})
    if arm != SINGLE:
        return {f"{arm}-s{seed}": make(())}
    return {f"{arm}-s{seed}-{task.partition('/')[2]}": make((task,)) for task in make(()).tasks}


def of_run(folder: RunFolder) -> dict:
    """One run, task by task: each evaluation, and what it took to be solved."""
    config, lines = folder.config, json.loads(folder.evaluations.read_text())
    tasks = {}
    for task in configure.tasks(config):
        target = goal(task, config.dps)
        curve = [
            {
                "interactions": line["interactions_by_task"][task.name],
                "total": line["interactions"],
                "return": line["tasks"][task.name]["mean"],
            }
            for line in lines
        ]
        during = curve[:-1]  # the last one comes when the budget is spent
        solved = [point["interactions"] for point in during if point["return"] >= target]
        tasks[task.name] = {
            "target": target,
            "interactions": curve[-1]["interactions"],
            "solved_at": solved[0] if solved else None,
            "final_return": curve[-1]["return"],
            "curve": curve,
        }
    start = folder.about()["starts"][-1]
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return {
        "seed": config.seed,
        "tasks": tasks,
        "seconds": lines[-1]["seconds"],
        "updates": lines[-1]["updates"],
        "starts": len(folder.about()["starts"]),
        "decided": [e for e in events if e["event"] in ("stage", "curriculum")],
        "ran_on": {key: start[key] for key in ("commit", "platform", "cores", "packages")},
    }


def joined(runs: Sequence[dict]) -> dict:
    """The runs that one arm took with one seed, as one."""
    first, *_ = runs
    together = {name: task for run in runs for name, task in run["tasks"].items()}
    total = {key: sum(run[key] for run in runs) for key in ("seconds", "updates", "starts")}
    return {**first, **total, "tasks": together}


def until_solved(seed: dict, budget: int) -> int:
    """Interactions until each task was solved, or its budget where it was not, summed."""
    return sum(task["solved_at"] or budget for task in seed["tasks"].values())


def at_mean(seed: dict, level: float) -> float | None:
    """Interactions of all tasks until the mean of the best returns so far reaches `level`."""
    names = list(seed["tasks"])
    curves = [seed["tasks"][name]["curve"] for name in names]
    if len({len(curve) for curve in curves}) > 1:
        raise ValueError("evaluations of one seed's tasks must come at the same decisions")
    best = np.maximum.accumulate([[p["return"] for p in curve] for curve in curves], axis=1)
    spent = np.sum([[p["interactions"] for p in curve] for curve in curves], axis=0)
    there = np.flatnonzero(best.mean(axis=0) >= level)
    return int(spent[there[0]]) if len(there) else None


def summary(arm: dict[int, dict], budget: int) -> dict:
    """One arm: for each task a list over seeds, and the totals."""
    seeds = sorted(arm)
    each = lambda task, key: [arm[seed]["tasks"][task][key] for seed in seeds]
    tasks = arm[seeds[0]]["tasks"]
    keys = ("interactions", "solved_at", "final_return", "curve")
    return {
        "seeds": seeds,
        "tasks": {
            task: {"target": tasks[task]["target"], **{key: each(task, key) for key in keys}}
            for task in tasks
        },
        "until_solved": [until_solved(arm[seed], budget) for seed in seeds],
        "total_interactions": [
            sum(task["interactions"] for task in arm[seed]["tasks"].values()) for seed in seeds
        ],
        **{key: [arm[s][key] for s in seeds] for key in ("seconds", "updates", "starts")},
        "decided": [arm[seed]["decided"] for seed in seeds],
        "ran_on": [arm[seed]["ran_on"] for seed in seeds],
    }


def compared(arms: dict[str, dict[int, dict]], budget: int) -> dict:
    """What each arm with scaling took, as a share of those without, seed by seed.

    `until_solved`: of the interactions until solved, or the budget. `same_mean`: of those until
    the mean over tasks of the best returns so far reaches what the lower of the two arms ends with.
    """
    shares: dict[str, dict] = {}
    for new in (name for name in arms if name in SPARING):
        for old in (name for name in arms if name not in SPARING):
            first, same = [], []
            for seed in sorted(set(arms[new]) & set(arms[old])):
                a, b = arms[new][seed], arms[old][seed]
                first.append(until_solved(a, budget) / until_solved(b, budget))
                tops = [
                    np.mean([max(p["return"] for p in t["curve"]) for t in x["tasks"].values()])
                    for x in (a, b)
                ]
                took = [at_mean(x, min(tops)) for x in (a, b)]
                same.append(took[0] / took[1] if None not in took else None)
            shares[f"{new} / {old}"] = {"until_solved": first, "same_mean": same}
    return shares


def draw(arms: dict[str, dict], path: Path) -> None:
    """Return against the interactions spent on each task, and all interactions until solved."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(next(iter(arms.values()))["tasks"])
    figure, panels = plt.subplots(
        1, len(tasks) + 1, figsize=(3 * len(tasks) + 4, 3.4), layout="tight"
    )
    colours = {arm: f"C{number}" for number, arm in enumerate(NAMES)}
    for panel, task in zip(panels, tasks, strict=False):
        for arm, result in arms.items():
            for number, curve in enumerate(result["tasks"][task]["curve"]):
                at = [point["interactions"] / 1000 for point in curve]
                label = NAMES[arm] if number == 0 else None
                means = [point["return"] for point in curve]
                panel.plot(at, means, color=colours[arm], label=label, alpha=0.8)
        panel.axhline(next(iter(arms.values()))["tasks"][task]["target"], color="grey", ls=":")
        panel.set_title(task, fontsize=9)
        panel.set_xlabel("1,000 interactions with it")
    panels[0].set_ylabel("return")
    panels[0].legend(fontsize=6)
    for place, (arm, result) in enumerate(arms.items()):
        spent = [count / 1000 for count in result["until_solved"]]
        panels[-1].bar(place, np.mean(spent), color=colours[arm], alpha=0.5)
        panels[-1].plot([place] * len(spent), spent, "k.")
    panels[-1].set_xticks(range(len(arms)), [arm.replace("_", "\n") for arm in arms], fontsize=7)
    panels[-1].set_title("1,000 interactions until solved, all tasks", fontsize=9)
    figure.savefig(path, dpi=110)


def table(arms: dict[str, dict]) -> str:
    """What docs/stages.md shows, in Markdown; a cell has one entry for each seed."""
    tasks = list(next(iter(arms.values()))["tasks"])
    join = lambda entries: " / ".join(entries)
    thousands = lambda count: "–" if count is None else f"{count / 1000:,.1f}".removesuffix(".0")
    rows = [
        ["arm", *(f"`{task}`" for task in tasks), "until solved", "in all", "minutes"],
        ["---"] * (len(tasks) + 4),
    ]
    for name, arm in arms.items():
        cells = [NAMES[name]]
        for task in tasks:
            told = arm["tasks"][task]
            solved = join([thousands(count) for count in told["solved_at"]])
            cells.append(f"{solved}: {join([f'{each:,.0f}' for each in told['final_return']])}")
        cells += [join([thousands(n) for n in arm[key]]) for key in TOTALS]
        cells.append(join([f"{seconds / 60:.0f}" for seconds in arm["seconds"]]))
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Read the command line, train what is missing, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="directory of the runs")
    parser.add_argument("--arms", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", required=True, type=Path, help="path without its ending")
    parser.add_argument("--no-train", action="store_true", help="compare what is there")
    options = parser.parse_args()
    arms: dict[str, dict[int, dict]] = {}
    budget = 0
    for seed in options.seeds:
        for arm in options.arms:
            configs = parts(arm, seed)
            budget = next(iter(configs.values())).run.decisions
            there = [(options.runs / name / "evaluations.json").exists() for name in configs]
            if options.no_train and not all(there):
                print(f"{arm}, seed {seed}: not all of its runs are there")
                continue
            folders = []
            for name, config in configs.items():
                path = options.runs / name
                if not options.no_train:
                    scalezero.train(config, RunFolder.open(path, config))
                folders.append(RunFolder.find(path))
            arms.setdefault(arm, {})[seed] = joined([of_run(folder) for folder in folders])
    summaries = {arm: summary(arms[arm], budget) for arm in options.arms if arm in arms}
    result = {"budget": budget, "shares": compared(arms, budget), "arms": summaries}
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(summaries, options.out.with_suffix(".png"))
    print(table(summaries))


if __name__ == "__main__":
    main()
