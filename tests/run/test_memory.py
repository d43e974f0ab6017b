"""A run takes what was said, and no more the longer it goes on."""

import json
import subprocess
import sys

import psutil
import pytest
from tiny import SETTINGS, tiny

from scalezero import configure
from scalezero.config import ConfigError
from scalezero.run.folder import RunFolder
from scalezero.run.probe import filling, probe
from scalezero.run.run import Run

SLACK = 6 << 20  # bytes; a leak of one batch or one history a turn is more


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
def test_what_a_run_takes_is_what_was_said(tmp_path):
    config = tiny()
    said = probe(config)
    file = tmp_path / "config.toml"
    file.write_text(configure.dump(config))
    train = ["train", "--config", str(file), "--run", str(tmp_path / "r")]
    subprocess.run([sys.executable, "-m", "scalezero", *train], check=True, capture_output=True)
    last = json.loads((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["memory/peak_bytes"] == pytest.approx(said.peak, rel=0.1)


@pytest.mark.slow
def test_a_run_that_cannot_start_is_said_to_fail_with_its_own_words(monkeypatch):
    monkeypatch.setenv("SCALEZERO_JERICHO_GAMES", "/nowhere")
    with pytest.raises(ConfigError, match=r"check --memory.*nowhere"):
        probe(tiny(tasks=["jericho/zork1"]))
