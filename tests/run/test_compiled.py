import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from jax._src.lru_cache import LRUCache

from scalezero import cli, configure
from scalezero.agent import traced
from scalezero.bench.bench import bench
from scalezero.run import compiled
from scalezero.run.agent import load
from scalezero.run.check import check
from scalezero.run.folder import RunFolder
from scalezero.run.train import train

KEEP_TRACED = compiled.keep_traced  # which tests may not
PROGRAM = """
import jax
from scalezero.run import compiled

compiled.keep()
print(jax.jit(lambda x: x + 1)(1), end="")
"""


@pytest.fixture
def cache(tmp_path):
    """A folder of programs as JAX uses one, whose writes are ours."""
    compiled.keep()
    return LRUCache(str(tmp_path / "jax"), max_size=-1)


@pytest.fixture
def told():
    """JAX's settings, to change for a test."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", compiled.LEAST)
    names += ("jax_default_matmul_precision", "jax_debug_nans")
    before = {name: getattr(jax.config, name) for name in names}
    yield jax.config.update
    for name, value in before.items():
        jax.config.update(name, value)


def leave(folder: Path) -> tuple[Path, Path]:
    """What a process left that was killed long ago, and what one writes now."""
    old, new = (folder / f"{compiled.ASIDE}{name}" for name in ("old", "new"))
    old.mkdir()
    new.mkdir()
    long_ago = time.time() - 2 * compiled.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    return old, new


class Kept(Exception):
    """What was to be kept would have been."""


def keep() -> None:
    raise Kept


def run(home: Path) -> subprocess.CompletedProcess:
    own = {"SCALEZERO_CACHE": str(home), "JAX_PLATFORMS": "cpu"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=others | own, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_programs_are_kept_and_spoilt_ones_are_mended(tmp_path):
    assert run(tmp_path).stdout == "2"
    kept = {file: file.read_bytes() for file in tmp_path.glob("jax/*-cache")}
    assert kept
    for file, whole in kept.items():
        file.write_bytes(whole[: len(whole) // 2])
    warned = run(tmp_path)
    assert warned.stdout == "2"
    assert "compilation cache" in warned.stderr
    assert run(tmp_path).stderr == ""
    assert all(len(file.read_bytes()) > len(whole) // 2 for file, whole in kept.items())


def test_a_program_is_found_whole_or_not_at_all(cache, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            cache.put("key", b"a program")
    assert cache.get("key") is None
    cache.put("key", b"a program")
    assert cache.get("key") == b"a program"


def test_a_limit_that_jax_was_given_stays_its_own(tmp_path):
    compiled.keep()
    limited = LRUCache(str(tmp_path), max_size=20)
    for name in ("one", "two"):
        limited.put(name, b"sixteen of bytes")
    assert limited.get("one") is None
    assert limited.get("two") == b"sixteen of bytes"


def test_what_a_kill_left_is_swept_when_it_is_old(told, tmp_path):
    told("jax_compilation_cache_dir", str(tmp_path))
    old, new = leave(tmp_path)
    compiled.keep()
    assert not old.exists()
    assert new.exists()


def test_a_sweep_goes_on_where_another_was_faster(told, tmp_path, monkeypatch):
    told("jax_compilation_cache_dir", str(tmp_path))
    old, _ = leave(tmp_path)
    listed = [tmp_path / f"{compiled.ASIDE}gone", old]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    compiled.keep()
    assert not old.exists()


def test_where_jax_keeps_nothing_nothing_is_swept(told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told("jax_compilation_cache_dir", "")
    old, _ = leave(tmp_path)
    compiled.keep()
    assert old.exists()


@pytest.mark.parametrize(
    ("variable", "before", "after"),
    [(None, compiled.LEAST_OF_JAX, 0), (None, 5.0, 5.0), ("1", compiled.LEAST_OF_JAX, 1.0)],
)
@pytest.mark.parametrize("named", [True, False])
def test_what_jax_was_told_comes_first(told, tmp_path, monkeypatch, named, variable, before, after):
    monkeypatch.setenv("SCALEZERO_CACHE", str(tmp_path / "ours"))
    monkeypatch.delenv(compiled.LEAST.upper(), raising=False)
    if variable:
        monkeypatch.setenv(compiled.LEAST.upper(), variable)
    told("jax_compilation_cache_dir", str(tmp_path) if named else None)
    told(compiled.LEAST, before)
    compiled.keep()
    expected = tmp_path if named else tmp_path / "ours" / "jax"
    assert jax.config.jax_compilation_cache_dir == str(expected)
    assert getattr(jax.config, compiled.LEAST) == after


@pytest.mark.parametrize("verb", ["train", "check", "bench", "load"])
def test_whatever_compiles_keeps_it(verb, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "keep", keep)
    config = configure.resolve(tasks=["toy/catch"])
    calls = {
        "train": lambda: train(config, RunFolder.open(tmp_path, config)),
        "check": lambda: check(config),
        "bench": lambda: bench("replay", config, seconds=0.0),
        "load": lambda: load(tmp_path),
    }
    with pytest.raises(Kept):
        calls[verb]()


@pytest.mark.parametrize("verb", ["train", "evaluate", "play"])
def test_the_command_line_keeps_what_is_traced(verb, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "keep_traced", keep)
    config = configure.resolve(tasks=["toy/catch"])
    run = str(RunFolder.open(tmp_path / "run", config).path)
    line = {
        "train": ["train", "--run", run],
        "evaluate": ["evaluate", run],
        "play": ["play", run, "--task", "toy/catch"],
    }
    with pytest.raises(Kept):
        cli.main(line[verb])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_compilation_cache_dir", ""),
        ("jax_compilation_cache_dir", "gs://bucket"),
        ("jax_enable_compilation_cache", False),
    ],
)
def test_where_jax_keeps_nothing_nothing_traced_is_kept(setting, value, told, monkeypatch):
    monkeypatch.setattr(traced, "shelf", None)
    told(setting, value)
    KEEP_TRACED()
    assert traced.shelf is None


def test_a_folder_that_cannot_be_had_is_done_without(told, tmp_path, monkeypatch):
    monkeypatch.setattr(traced, "shelf", None)
    told("jax_compilation_cache_dir", str(tmp_path / "jax"))
    KEEP_TRACED()
    assert isinstance(traced.shelf.cache, LRUCache)
    monkeypatch.setattr(traced, "shelf", None)
    (tmp_path / "file").touch()
    told("jax_compilation_cache_dir", str(tmp_path / "file" / "jax"))
    KEEP_TRACED()
    assert traced.shelf is None


def test_programs_are_of_one_source_and_of_no_files_that_changed_since(tmp_path):
    source = lambda since: compiled._source(tmp_path, since=since)
    assert source(1e12) is None  # no files at all, as in an archive
    file = tmp_path / "agent" / "act.py"
    file.parent.mkdir()
    file.write_text("one")
    written = file.stat().st_mtime
    one = source(written + 1)
    assert one and source(written - 1) is None
    file.write_text("two")
    assert source(1e12) not in (one, None)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    assert source(1e12) is None


def test_programs_are_of_jaxs_settings_and_not_of_those_that_look_into_them(told, monkeypatch):
    monkeypatch.setattr(compiled, "_source", lambda *_, **__: "source")
    one = compiled._about()
    assert one == compiled._about() and "source" in one
    told("jax_default_matmul_precision", "highest")
    assert compiled._about() not in (one, None)
    told("jax_debug_nans", True)
    assert compiled._about() is None


@pytest.mark.slow
def test_a_second_start_traces_nothing_that_the_first_did(tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"), "JAX_PLATFORMS": "cpu"}
    sizes = ("--model.layers", "1", "--model.experts", "2", "--search.simulations", "2")
    length = ("--run.decisions", "96", "--data.warmup_decisions", "32", "--run.final_episodes", "3")
    kept, returns = [], []
    for name in ("first", "second"):
        run = tmp_path / name
        line = ["train", "--run", str(run), "--tasks", "toy/catch", *sizes, *length]
        command = [sys.executable, "-m", "scalezero", *line]
        subprocess.run(command, env=os.environ | own, check=True, capture_output=True)
        returns.append(json.loads((run / "evaluations.json").read_text())[0]["tasks"])
        files = (tmp_path / "jax").glob("traced-*")
        kept.append({file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files})
    assert kept[0] == kept[1]  # none was written again
    assert len(kept[0]) == 2
    assert returns[0] == returns[1]
