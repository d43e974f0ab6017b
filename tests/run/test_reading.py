"""A run that reads: text beside states, slow games, and what is kept of them."""

import json
import threading

import jax
import numpy as np
import pytest
from tiny import SETTINGS, tiny

import scalezero
from scalezero.cli import main
from scalezero.data.book import Book
from scalezero.envs import pool as pools
from scalezero.envs.catalog import find, make
from scalezero.envs.pool import Pool
from scalezero.envs.spec import Page
from scalezero.run.folder import RunFolder
from scalezero.run.run import Run

pytest.importorskip("tokenizers", reason="the text extra is not installed")
pytest.importorskip("safetensors", reason="the text extra is not installed")

MIXED = ["toy/target", "toy/corridor"]
TASKS = tuple(find(name) for name in MIXED)


def reading(**changes):
    """The smallest config with text, that waits for its games."""
    text = {"encoder": "scratch", "scratch_width": 8, "scratch_layers": 1}
    text |= {"tokens": 16, "action_tokens": 4, "capacity": 64}
    data = SETTINGS["data"] | {"patience": 3600.0}
    return tiny(**({"tasks": MIXED, "text": text, "data": data} | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of a task with states and one with text."""
    folder = RunFolder.open(tmp_path_factory.mktemp("run") / "mixed", reading())
    scalezero.train(folder.config, folder)
    return folder


def test_a_mixed_run_learns_and_says_what_it_read(trained):
    lines = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    assert {"texts/known", "texts/hit_rate", "texts/cut", "waited"} <= lines[-1].keys()
    assert lines[-1]["toy/corridor/late"] == 0.0
    assert lines[-1]["toy/decisions_per_second"] > 0
    assert all(0 <= line["device_idle"] < 1 for line in lines)
    assert lines[-1]["memory/peak_bytes"] >= lines[-1]["memory/bytes"] > 0
    assert 0.5 < lines[-1]["texts/hit_rate"] < 1
    texts = (trained.texts / "texts.jsonl").read_text().splitlines()
    assert len(texts) == len(set(texts)) >= lines[-1]["texts/known"] > 20
    assert any("toy/corridor/loss/policy" in line for line in lines)


def test_an_agent_names_the_action_it_takes(trained):
    agent = scalezero.load(trained.path)
    page = Page("You are in the red room. The exit is north.", ("go east", "go north"))
    assert agent.act(page, task="toy/corridor") in page.actions
    with pytest.raises(ValueError, match="lists no action"):
        agent.act(Page("You are in the red room.", ()), task="toy/corridor")
    with pytest.raises(ValueError, match="the task shows no text"):
        agent.act(page, task="toy/target")
    with pytest.raises(ValueError, match="must be a Page"):
        agent.act("You are in the red room.", task="toy/corridor")


def test_a_transcript_tells_the_game(trained, capsys):
    assert main(["play", str(trained.path), "--task", "toy/corridor", "--top", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("You are in the") >= 1
    assert "> go " in said
    assert "the game is over; score " in said
    assert main(["play", str(trained.path), "--task", "toy/target"]) == 2
    assert "these are: toy/corridor" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_run_replays_the_texts_that_it_saw(tmp_path):
    """Texts keep their numbers, so what is replayed after a resume is what was seen before it."""
    folder = RunFolder.open(tmp_path / "mixed", reading())
    run = Run(folder.config, folder)
    try:
        while run.decisions < 40:
            run.turn()
        run.save()
        book, library = list(run.texts.book.texts), np.asarray(run.texts.contents())
        sampled = run.mixture.sample(np.array([0, 1]), 3, 3, 3, 0.0, 1, np.random.default_rng(0))
        run.turn()  # what comes after the save is lost, its new texts too
    finally:
        run.close()
    again = Run(folder.config, folder)
    try:
        assert again.texts.book.texts[: len(book)] == book
        np.testing.assert_array_equal(again.texts.contents()[: len(book)], library[: len(book)])
        other = again.mixture.sample(np.array([0, 1]), 3, 3, 3, 0.0, 1, np.random.default_rng(0))
        np.testing.assert_array_equal(other.text, sampled.text)
        again.turn()
    finally:
        again.close()


class Gate:
    """A text environment that steps when it is let."""

    def __init__(self, inner):
        self.inner, self.envs = inner, inner.envs
        self.open = threading.Event()

    def reset(self):
        return self.inner.reset()

    def step(self, action):
        self.open.wait()
        return self.inner.step(action)

    def close(self):
        self.open.set()
        self.inner.close()


@pytest.fixture
def gates(monkeypatch):
    """Every text environment that a pool makes, behind a gate."""
    made = []

    def gated(task, envs, **rest):
        inner = make(task, envs, **rest)
        if task.name != "toy/corridor":
            return inner
        made.append(Gate(inner))
        return made[-1]

    monkeypatch.setattr(pools, "make", gated)
    return made


def test_a_slow_game_stalls_nobody_and_loses_nothing(gates):
    pool = Pool(TASKS, 2, seed=0, training=True, read=Book().read)
    try:
        first = pool.reset()
        pool.send(np.zeros((2, 2, 2), np.float32))
        steps = pool.recv(patience=0.0)
        assert steps.ready.tolist() == [True, False]
        assert not np.any(steps.text >= 0)
        steps.keep(1, first)
        np.testing.assert_array_equal(steps.text, first.text)
        pool.send(np.zeros((2, 2, 2), np.float32), steps.ready)
        with pytest.raises(RuntimeError, match="twice in a row"):
            pool.send(np.zeros((2, 2, 2), np.float32), np.array([False, True]))
        gates[0].open.set()
        later = pool.recv()
        assert later.ready.all()
        assert np.all(later.text[..., 0] >= 0)
    finally:
        pool.close()


def test_alone_a_slow_game_is_waited_for(gates):
    pool = Pool(TASKS[1:], 2, seed=0, training=True, read=Book().read)
    try:
        pool.reset()
        pool.send(np.zeros((1, 2, 1), np.float32))
        threading.Timer(0.05, gates[0].open.set).start()
        assert pool.recv(patience=0.0).ready.all()
    finally:
        pool.close()


def test_collection_goes_on_without_a_slow_game_and_remembers_it_whole(gates, tmp_path):
    # Planning begins while the game stands still; nothing is learnt.
    data = SETTINGS["data"] | {"patience": 0.0, "warmup_decisions": 20}
    config = reading(data=data, learn=SETTINGS["learn"] | {"replay_ratio": 1e-3})
    run = Run(config, RunFolder.open(tmp_path / "slow", config))
    try:
        for gate in gates:
            gate.open.set()
        for _ in range(8):
            run.turn()
        before = [replay.decisions for replay in run.replays]
        for gate in gates:
            gate.open.clear()
        for _ in range(8):
            run.turn()
        during = [replay.decisions for replay in run.replays]
        assert before[0] < config.data.warmup_decisions < during[0]
        assert during[0] > before[0] + 10
        assert during[1] <= before[1] + config.data.envs  # what was under way
        for gate in gates:
            gate.open.set()
        for _ in range(8):
            run.turn()
        assert run.replays[1].decisions > during[1]
        window = run.replays[1].sample(200, 3, 3, 0.0, np.random.default_rng(0))
        _require_whole(run, window)
    finally:
        for gate in gates:
            gate.open.set()
        run.close()


def _require_whole(run, window):
    """Every rewarded step of a window went the way that its own page named."""
    texts = run.texts.book.texts
    for row, step in np.argwhere(window.known[:, :3] & window.known[:, 1:4]):
        page = texts[window.observation[row, step, 0]]
        if "exit is" not in page or window.ending[row, step]:
            continue
        listed = window.observation[row, step, 1:]
        taken = texts[listed[int(window.action[row, step, 0])]]
        right = taken == "go " + page.rpartition("is ")[2].rstrip(".")
        assert window.reward[row, step] == float(right)


def test_a_task_with_text_gets_the_updates_that_its_own_decisions_earned(tmp_path):
    config = reading(learn=SETTINGS["learn"] | {"replay_ratio": 0.5})
    run = Run(config, RunFolder.open(tmp_path / "ratio", config))
    try:
        while run.decisions < 100:
            run.turn()
        earned = [0.5 * (replay.decisions - 16) for replay in run.replays]
        assert abs(run.given[1] - earned[1]) <= 4 * config.learn.updates_per_call
        run.given[1] = 1e9  # as if it had had far more than its share
        task, rests = run._deal()
        assert rests[task == 1].all() and not rests[task == 0].any()
    finally:
        run.close()


@pytest.mark.slow
def test_a_run_that_waits_for_its_games_is_repeatable(trained, tmp_path):
    folder = RunFolder.open(tmp_path / "again", reading())
    scalezero.train(folder.config, folder)
    texts = "texts.jsonl"
    assert (folder.texts / texts).read_text() == (trained.texts / texts).read_text()
    one, other = (scalezero.load(each.path).world for each in (folder, trained))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_beside_a_slow_game_the_others_keep_their_pace_and_their_updates(gates, tmp_path):
    config = reading(data=SETTINGS["data"] | {"patience": 0.0})
    run = Run(config, RunFolder.open(tmp_path / "pace", config))
    try:
        for gate in gates:
            gate.open.set()
        while not run.replays[1].starts:
            run.turn()
        for gate in gates:
            gate.open.clear()
        while run.decisions < 100:
            run.turn()
        run.settle()
        assert run.decisions == run.replays[0].decisions > 2 * run.replays[1].decisions
        earned = 0.5 * (run.replays[0].decisions - 16)
        assert abs(run.updates - earned) <= config.learn.updates_per_call
        run.log()
        *_, line = run.folder.metrics.read_text().splitlines()
        values = json.loads(line)
        assert values["toy/target/loss/value"] > 0.1
        assert values.get("toy/corridor/loss/value", 1.0) > 0.1  # no zeros of calls without it
        assert values["toy/corridor/late"] > 0.5
    finally:
        for gate in gates:
            gate.open.set()
        run.close()


def test_runs_without_text_load_no_encoder(tmp_path):
    run = Run(tiny(), RunFolder.open(tmp_path / "plain", tiny()))
    try:
        assert run.texts.read is None
        assert run.texts.contents().shape == (0, 0)
        assert isinstance(run.texts.contents(), jax.Array)
        assert not (tmp_path / "plain" / "texts").exists()
    finally:
        run.close()
