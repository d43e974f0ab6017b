"""Resumed = uninterrupted, and a kill at any moment costs only what was not saved."""

import json
import signal
import subprocess
import sys
import threading
import time

import equinox as eqx
import jax
import numpy as np
import pytest
import tomli_w
from tiny import SETTINGS, tiny

from scalezero.run import collect
from scalezero.run.checkpoint import named_leaves
from scalezero.run.folder import RunError, RunFolder
from scalezero.run.run import Run
from scalezero.run.train import train


def equal(one, other) -> bool:
    ours, theirs = named_leaves(one), named_leaves(other)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name])) for name in ours
    )


@pytest.fixture(scope="module")
def run_with_data(tmp_path_factory):
    """A run that has collected and learnt a little, saved, then learnt four updates more."""
    config = tiny()
    folder = RunFolder.open(tmp_path_factory.mktemp("runs") / "r", config)
    run = Run(config, folder)
    for _ in range(30):
        run.turn()
    run.save()
    run.learn(2)
    run.learn(2)
    run.settle()
    run.close()
    return config, folder, run


def test_a_resumed_learner_is_bit_identical_to_an_uninterrupted_one(run_with_data):
    config, folder, uninterrupted = run_with_data
    resumed = Run(config, folder)
    resumed.learn(2)
    resumed.learn(2)
    resumed.settle()
    resumed.close()
    assert int(resumed.state.updates) == int(uninterrupted.state.updates)
    assert equal(resumed.state, uninterrupted.state)


def test_a_resumed_run_has_its_counters_and_replay_back(run_with_data):
    config, folder, before = run_with_data
    after = Run(config, folder)
    after.close()
    assert after.turns == before.turns
    assert after.decisions == before.decisions
    assert [r.rows for r in after.replays] == [r.rows for r in before.replays]


def test_a_checkpoint_of_another_model_names_the_leaf(run_with_data):
    _, folder, _ = run_with_data
    other = tiny(model=SETTINGS["model"] | {"shared_width": 24})
    with pytest.raises(RunError, match=r"shared\.first\.weight was saved as float32\[16, 16\]"):
        Run(other, folder)


def test_training_twice_from_one_seed_learns_the_same(tmp_path):
    states = []
    for name in ("one", "two"):
        config = tiny()
        run = Run(config, RunFolder.open(tmp_path / name, config))
        for _ in range(24):
            run.turn()
        run.settle()
        run.close()
        states.append(run.state)
    assert int(states[0].updates) > 0
    assert equal(*states)


def test_two_processes_cannot_train_in_one_directory(run_with_data):
    config, folder, _ = run_with_data
    with (
        folder.lock(),
        pytest.raises(RunError, match="another process trains here"),
        RunFolder(folder.path, config).lock(),
    ):
        pass


def test_training_waits_until_there_is_something_to_sample(tmp_path):
    config = tiny(data=SETTINGS["data"] | {"warmup_decisions": 0})
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    for _ in range(8):
        run.turn()
    assert run.updates > 0
    run.close()


def test_decisions_are_at_random_until_enough_are_made_and_planned_after(tmp_path, monkeypatch):
    made = []

    def noted(name):
        decide = getattr(collect, name)
        noting = lambda *args, **rest: made.append(name) or decide(*args, **rest)
        noting.lower = decide.lower
        return noting

    for name in ("act", "act_at_random"):
        monkeypatch.setattr(collect, name, noted(name))
    config = tiny()  # 16 of each task; a turn makes 2, and their rewards come two turns later

    def turns(name, count):
        made.clear()
        run = Run(config, RunFolder.open(tmp_path / name, config))
        for _ in range(count):
            run.turn()
        run.save()
        run.close()
        return made.copy()

    assert turns("whole", 13) == 10 * ["act_at_random"] + 3 * ["act"]
    assert turns("resumed", 4) == 4 * ["act_at_random"]  # 4 decisions of each task are remembered
    assert turns("resumed", 10) == 8 * ["act_at_random"] + 2 * ["act"]


def test_the_search_is_compiled_beside_the_decisions_at_random_and_once(tmp_path):
    compiled = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration") and fun_name == "jit(act)":
            compiled.append(threading.current_thread().name)

    jax.clear_caches()
    config = tiny()
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    jax.monitoring.register_event_duration_secs_listener(listen)
    for _ in range(13):
        run.turn()
    run.close()
    jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 1
    assert compiled[0].startswith("search")


def test_a_nan_loss_stops_the_run_and_names_the_task(tmp_path):
    config = tiny()
    folder = RunFolder.open(tmp_path / "r", config)
    run = Run(config, folder)
    for _ in range(20):
        run.turn()
    run.save()
    saved = run.checkpoints.latest
    spoil = lambda x: x.at[0].set(np.nan)  # the first task's head
    run.state = eqx.tree_at(
        lambda s: s.world.value, run.state, jax.tree.map(spoil, run.state.world.value)
    )
    with pytest.raises(RunError, match=r"toy/target: the loss or its gradient is not finite at"):
        run.learn(2)
        run.save()
    assert run.checkpoints.latest == saved
    run.close()


def test_training_to_the_end_writes_what_it_promises(tmp_path):
    config = tiny()
    folder = RunFolder.open(tmp_path / "r", config)
    result = train(config, folder)
    assert [len(returns) for returns in result.returns] == [3, 3]
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines[-1]["updates"] > 0
    assert np.isfinite(lines[-1]["toy/chain/loss/value"])
    episodes = [json.loads(line) for line in folder.episodes.read_text().splitlines()]
    assert {episode["task"] for episode in episodes} == {"toy/target", "toy/chain"}
    evaluations = json.loads(folder.evaluations.read_text())
    assert len(evaluations) == 2
    again = train(config, RunFolder.open(folder.path, config))
    assert again.returns == result.returns
    assert json.loads(folder.evaluations.read_text()) == evaluations
    assert len(evaluations[-1]["tasks"]["toy/target"]["returns"]) == 3


def long_run(tmp_path) -> list[str]:
    """The command of a run that saves all the time and does not end by itself."""
    config = tmp_path / "config.toml"
    settings = SETTINGS | {"run": SETTINGS["run"] | {"decisions": 50_000, "save_minutes": 0.01}}
    config.write_text(tomli_w.dumps(settings))
    command = [sys.executable, "-m", "scalezero", "train"]
    return [*command, "--config", str(config), "--run", str(tmp_path / "r")]


def wait_for_a_save(run, beyond: int) -> None:
    deadline = time.monotonic() + 180
    while newest(run) <= beyond:
        assert time.monotonic() < deadline, "no checkpoint was made in three minutes"
        time.sleep(0.05)


@pytest.mark.slow
def test_kill_at_any_moment_loses_at_most_the_time_since_the_last_save(tmp_path):
    run, saved = tmp_path / "r", -1
    for pause in (0.0, 0.37):
        process = subprocess.Popen(long_run(tmp_path), stdout=subprocess.DEVNULL)
        try:
            wait_for_a_save(run, saved)
            time.sleep(pause)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        saved = newest(run)
        resumed = Run(RunFolder.find(run).config, RunFolder.find(run))
        assert resumed.turns == saved
        resumed.close()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_and_says_how_to_go_on(tmp_path, sign):
    run = tmp_path / "r"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(long_run(tmp_path), **pipes)
    try:
        wait_for_a_save(run, -1)
        before = newest(run)
        process.send_signal(sign)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == f"stopped; go on with `scalezero train --run {run}`"
    assert newest(run) >= before


def newest(run) -> int:
    """The newest whole checkpoint; -1 if there is none."""
    steps = [path.name for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    return max(map(int, steps), default=-1)
