import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from scalezero.run import logs
from scalezero.run.logs import JsonLines, TensorBoard


@pytest.fixture
def lines(tmp_path):
    """Logs by name, closed at the end."""
    made = []

    def open_log(name: str) -> JsonLines:
        made.append(JsonLines(tmp_path / name))
        return made[-1]

    yield open_log
    for log in made:
        log.close()


def test_what_is_written_reads_back(lines, tmp_path):
    log = lines("a.jsonl")
    log.write({"a": 1, "b": np.float32(0.5), "c": jnp.arange(2), "d": (True, None)})
    assert logs.read(tmp_path / "a.jsonl") == [{"a": 1, "b": 0.5, "c": [0, 1], "d": [True, None]}]


def test_numbers_without_a_value_become_null(lines, tmp_path):
    log = lines("a.jsonl")
    log.write({"a": float("nan"), "b": {"c": np.array([np.inf, 1.0])}})
    assert (tmp_path / "a.jsonl").read_text() == '{"a": null, "b": {"c": [null, 1.0]}}\n'


def test_a_resumed_log_is_the_log_of_an_uninterrupted_run(lines, tmp_path):
    whole, cut = lines("whole"), lines("cut")
    for log in (whole, cut):
        log.write({"step": 1})
    saved = cut.offset
    cut.write({"step": "after the checkpoint, then killed"})
    cut.close()
    again = lines("cut")
    again.truncate(saved)
    for log in (whole, again):
        log.write({"step": 2})
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_truncating_never_makes_a_log_longer(lines, tmp_path):
    log = lines("a")
    log.write({"step": 1})
    size = log.offset
    log.truncate(10 * size)
    assert log.offset == (tmp_path / "a").stat().st_size == size


def test_a_line_cut_short_by_a_crash_is_not_read(tmp_path):
    (tmp_path / "a").write_text(json.dumps({"step": 1}) + '\n{"st')
    assert logs.read(tmp_path / "a") == [{"step": 1}]


def test_tensorboard_takes_the_numbers_of_a_record(tmp_path):
    board = TensorBoard(tmp_path)
    board.write({"toy/catch/loss": jnp.float32(1), "nothing": float("nan"), "word": "x"}, 10)
    board.close()
    (file,) = tmp_path.iterdir()
    assert b"toy/catch/loss" in file.read_bytes()
    assert b"nothing" not in file.read_bytes()
    assert board.problem is None


def test_without_tensorboard_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    board = TensorBoard(tmp_path)
    board.write({"a": 1.0}, 1)
    board.close()
    assert "no TensorBoard files" in board.problem
