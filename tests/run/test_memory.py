"""A run takes what was said, and no more the longer it goes on."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import psutil
import pytest
from rich.console import Console
from tiny import SETTINGS, tiny

from scalezero import configure
from scalezero.config import ConfigError
from scalezero.run.build import optimiser_of
from scalezero.run.check import check
from scalezero.run.folder import RunFolder
from scalezero.run.pace import memory
from scalezero.run.probe import Memory, filling, moment, probe, run_in
from scalezero.run.run import Run
from scalezero.run.train import train

SLACK = 1 << 20  # bytes in 600 turns, which with the batches of their updates make more than 2


def test_a_run_whose_replays_are_full_stays_as_large_as_it_is(tmp_path):
    data = {**SETTINGS["data"], "replay_rows": 512, "warmup_decisions": 300}
    run = Run(tiny(data=data), RunFolder.open(tmp_path / "r", tiny(data=data)))
    resident = psutil.Process().memory_info
    try:
        before = 0
        for turn in range(900):
            run.turn()
            if turn % 50 == 0:
                run.log()
            if turn == 300:
                before = resident().rss
        assert run.updates > 100
        assert resident().rss - before < SLACK
    finally:
        run.close()


def test_replays_fill_as_far_as_a_run_goes():
    whole = filling(tiny(run={"decisions": 10**9}))
    assert filling(tiny(run={"decisions": 10**6})) == whole
    assert filling(tiny(run={"decisions": 400})) == pytest.approx(whole / 10, rel=0.1)


@pytest.mark.slow
def test_what_a_run_takes_is_what_was_said_and_it_finds_all_programs_kept(monkeypatch, tmp_path):
    programs = tmp_path / "jax"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs))
    kept = lambda: {file.name for file in programs.iterdir()}
    config = tiny(
        dps={"on": True, "stages": 2, "first_updates": 20, "stage_updates": 20, "rank": 4}
    )
    said, found = probe(config), kept()
    file = tmp_path / "config.toml"
    file.write_text(configure.dump(config))
    command = ["train", "--config", str(file), "--run", str(tmp_path / "r")]
    subprocess.run([sys.executable, "-m", "scalezero", *command], check=True, capture_output=True)
    last = json.loads((tmp_path / "r" / "events.jsonl").read_text().splitlines()[-1])
    assert last["memory/peak_bytes"] == pytest.approx(said.peak, rel=0.1)
    assert said.peak == said.started + filling(config)
    assert json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])["stage"] == 1
    assert kept() == found


@pytest.mark.parametrize("preset", configure.presets())
def test_a_moment_of_any_run_can_be_had_and_learns_by_the_same_schedule(preset, tmp_path):
    grows = {"dps.on": "true"} if preset != "quickstart" else {}
    config = configure.resolve(preset=preset, flags=grows)
    file = tmp_path / "config.toml"
    file.write_text(configure.dump(moment(config)))
    short = configure.read(file)
    assert optimiser_of(short) == optimiser_of(config)


@pytest.mark.slow
@pytest.mark.parametrize(("each", "ratio", "stages"), [(20, 0.25, {0, 1}), (1, 2.0, {1})])
def test_a_moment_reaches_every_stage_and_plans_beside_updates(
    monkeypatch, tmp_path, each, ratio, stages
):
    floors = {name: {"floor": -1e6} for name in ("toy/target", "toy/chain")}  # solved at once
    grows = {"on": True, "stages": 2, "first_updates": 1, "stage_updates": each, "rank": 2}
    config = tiny(
        dps=grows | {"target": 0.0, "freed": "stop"},
        env=floors,
        run=SETTINGS["run"] | {"evaluate_every": 8, "decisions": 400},
        data=SETTINGS["data"] | {"warmup_decisions": 0},
        learn=SETTINGS["learn"] | {"replay_ratio": ratio},
    )
    beside, turn = set(), Run.turn

    def watched(run):
        if run.learning is not None:
            beside.add(run.curriculum.stage)
        return turn(run)

    monkeypatch.setattr(Run, "turn", watched)
    folder = RunFolder.open(tmp_path / "r", moment(config))
    train(moment(config), folder)
    (evaluation,) = folder.evaluated()
    assert evaluation["stage"] == 1
    assert beside >= stages


def test_the_peak_of_a_process_is_its_own(tmp_path):
    held = np.ones(40 << 20)  # which a child must not be said to hold
    before = memory()["memory/peak_bytes"]
    child = "from scalezero.run.pace import memory; print(memory()['memory/peak_bytes'])"
    made = subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, text=True)
    assert held.nbytes < float(made.stdout) + held.nbytes / 2 < before


def test_both_starts_and_the_end_are_shown():
    table, config = Console(record=True, width=120), tiny()
    made = dataclasses.replace(check(config), memory=Memory(3_000, 2_000, 500, 70))
    made.show(table)
    shown = table.export_text()
    for number in ("3,000", "2,000", "2,500", "70"):
        assert re.search(rf"│ +{number} │", shown)


@pytest.mark.parametrize("how", ["exits", "is killed"])
def test_a_run_that_fails_is_said_to(monkeypatch, tmp_path, how):
    ends = "sys.exit('out of luck')" if how == "exits" else "os.kill(os.getpid(), 9)"
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, sys\n{ends}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    words = "failed: out of luck" if how == "exits" else "ended by SIGKILL, probably"
    with pytest.raises(ConfigError, match=words):
        run_in(["train"])


def test_whoever_interrupts_a_probe_ends_its_run_too(monkeypatch, tmp_path):
    script, told = tmp_path / "python", tmp_path / "pid"
    script.write_text(
        f"#!{sys.executable}\nimport os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(told)!r}, 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(KeyboardInterrupt):
        run_in(["train"])
    assert not psutil.pid_exists(int(told.read_text()))


@pytest.mark.slow
def test_a_run_that_cannot_start_is_said_to_fail_with_its_own_words(monkeypatch):
    monkeypatch.setenv("SCALEZERO_JERICHO_GAMES", "/nowhere")
    with pytest.raises(ConfigError, match=r"check --memory.*nowhere"):
        probe(tiny(tasks=["jericho/zork1"]))
