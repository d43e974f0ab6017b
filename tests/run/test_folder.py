import pytest

from scalezero import configure
from scalezero.configure import ConfigError
from scalezero.run.folder import RunError, RunFolder


def config(**flags):
    keys = {key.replace("__", "."): str(value) for key, value in flags.items()}
    return configure.resolve(tasks=["toy/catch"], flags=keys)


def refused(path, settings) -> str:
    with pytest.raises(RunError) as caught:
        RunFolder.open(path, settings)
    return str(caught.value)


def test_a_folder_is_made_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    path = tmp_path / "runs" / "a"
    made = RunFolder.open(path, config(seed=4))
    assert RunFolder.find(path) == made
    assert made.checkpoints.is_dir()
    (start,) = made.about()["starts"]
    assert start["packages"]["jax"]
    assert start["devices"]
    assert start["variables"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


def test_every_start_is_noted(tmp_path):
    RunFolder.open(tmp_path, config())
    assert len(RunFolder.open(tmp_path, config()).about()["starts"]) == 2


def saved(path, config):
    """A run directory that holds a checkpoint."""
    folder = RunFolder.open(path, config)
    (folder.checkpoints / "1").mkdir()
    return folder


def test_a_start_that_saved_nothing_may_be_corrected(tmp_path):
    RunFolder.open(tmp_path, config())
    RunFolder.open(tmp_path, config(model__embed=96))
    assert RunFolder.find(tmp_path).config == config(model__embed=96)


def test_another_config_is_refused_with_the_keys_that_changed(tmp_path):
    saved(tmp_path, config())
    said = refused(tmp_path, config(model__embed=96, learn__loss__value=1.0))
    assert "model.embed (was 64, now 96), learn.loss.value (was 0.5, now 1.0)" in said
    assert RunFolder.find(tmp_path).config == config()


def test_a_run_may_become_longer_but_not_shorter(tmp_path):
    saved(tmp_path, config(run__decisions=100))
    RunFolder.open(tmp_path, config(run__decisions=200))
    assert RunFolder.find(tmp_path).config.run.decisions == 200
    assert "run.decisions (was 200, now 100)" in refused(tmp_path, config(run__decisions=100))


def test_what_is_no_run_directory_is_left_alone(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in refused(file, config())
    assert "Not a directory" in refused(file / "below", config())
    assert "holds files, but no run" in refused(tmp_path, config())
    assert file.read_text() == "mine"


def test_finding_nothing_suggests_a_neighbour(tmp_path):
    RunFolder.open(tmp_path / "dmc8-s0", config())
    with pytest.raises(RunError, match=r"no such run directory; did you mean .*dmc8-s0\?"):
        RunFolder.find(tmp_path / "dmc8-s1")
    with pytest.raises(RunError, match="is not a run directory"):
        RunFolder.find(tmp_path)


def test_an_unreadable_config_names_its_file(tmp_path):
    folder = saved(tmp_path, config())
    folder.config_file.write_text("tasks = [")
    with pytest.raises(ConfigError, match=r"config.toml: not TOML"):
        RunFolder.open(tmp_path, config())


def test_an_unreadable_account_names_its_file(tmp_path):
    folder = RunFolder.open(tmp_path, config())
    folder.about_file.write_text("{")
    assert "about.json: not JSON" in refused(tmp_path, config())
