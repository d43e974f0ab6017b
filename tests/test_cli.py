import json
import os
import subprocess
import sys

import pytest

from scalezero import __main__ as command_line
from scalezero import configure
from scalezero.cli import main


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Runs in an empty directory with a trainer that only notes how it was called."""
    import scalezero.run.train

    noted = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        scalezero.run.train, "train", lambda config, folder: noted.append((config, folder))
    )
    return noted


def run(words: str) -> int:
    return main(words.split())


def test_help_needs_no_jax():
    code = (
        "import sys; from scalezero.cli import main\n"
        "try: main(['train', '--help'])\n"
        "finally: assert 'jax' not in sys.modules and 'gymnasium' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("says", "given", "again"),
    [
        ("always [madvise] never", {}, True),
        ("[always] madvise never", {}, False),
        ("always [madvise] never", {"GLIBC_TUNABLES": ""}, False),
        ("always [madvise] never", {"SCALEZERO_STARTED": "again"}, False),
        (None, {}, False),
    ],
)
def test_huge_pages_are_asked_for_where_that_helps(says, given, again, tmp_path, monkeypatch):
    setting, begun = tmp_path / "enabled", []
    if says:
        setting.write_text(says)
    environ = dict(given)
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(os, "execve", lambda _, words, given: begun.append([*words, given]))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "scalezero", "doctor"])
    monkeypatch.setattr(command_line, "HUGE_PAGES", setting)
    monkeypatch.setattr("scalezero.cli.main", lambda: 7)
    assert command_line.command() == 7
    variables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "SCALEZERO_STARTED": "again"}
    assert begun == ([[sys.executable, "-m", "scalezero", "doctor", variables]] if again else [])
    assert environ == given  # nothing is said to be in force that is not


def test_a_command_that_cannot_start_again_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    setting = tmp_path / "enabled"
    setting.write_text("[madvise]")
    environ: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(command_line, "HUGE_PAGES", setting)
    monkeypatch.setattr("scalezero.cli.main", lambda: 7)
    assert command_line.command() == 7
    assert not environ


def test_help_documents_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for key, field in configure.settings():
        assert f"--{key} " in said
        assert " ".join(field.description.split()) in said


def test_train_gets_the_config_and_its_folder(calls, tmp_path):
    words = "train --preset quickstart --seed 3 --model.embed 96 --env.toy/catch.floor=-1"
    assert run(words) == 0
    ((config, folder),) = calls
    assert (config.seed, config.model.embed, config.env["toy/catch"].floor) == (3, 96, -1)
    assert folder.path.name == "quickstart-s3"
    assert configure.read(tmp_path / "runs/quickstart-s3/config.toml") == config


def test_any_mix_of_tasks_is_a_run(calls):
    assert run("train --tasks toy/catch dmc/cheetah-run") == 0
    ((config, folder),) = calls
    assert config.tasks == ("toy/catch", "dmc/cheetah-run")
    assert folder.path.name == "toy-catch+dmc-cheetah-run-s0"


def test_a_run_directory_alone_goes_on_with_its_run(calls, capsys):
    assert run("train --tasks toy/catch --run here --model.layers 1") == 0
    assert run("train --run here") == 0
    assert run("train --run here --run.decisions 200_000") == 0
    assert calls[0][0] == calls[1][0]
    assert calls[2][0].run.decisions == 200_000
    (calls[2][1].checkpoints / "1").mkdir()
    assert run("train --run here --model.layers 2") == 2
    assert "model.layers (was 1, now 2)" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, calls, capsys):
    import scalezero.run.train

    def stop(config, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(scalezero.run.train, "train", stop)
    assert run("train --tasks toy/catch --run here") == 130
    assert capsys.readouterr().err == "stopped; go on with `scalezero train --run here`\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("train --preset dmc", "did you mean dmc8?"),
        ("train --tasks dmc/cheeta-run", "did you mean dmc/cheetah-run?"),
        ("train --tasks toy/catch --model.layer 3", "did you mean --model.layers?"),
        ("train --tasks toy/catch --model.layers=abc", "must be int"),
        ("train --tasks toy/catch --model.layers", "expected one argument"),
        ("train", "give --preset or --tasks"),
        ("train --preset quickstart stray", "--section.name VALUE"),
        ("check --tasks nope/nope", "no such task"),
        ("trian", "'train'"),
        ("tasks stray", "see scalezero --help"),
        ("evaluate nowhere", "no such run directory"),
        ("evaluate . --episodes 0", "must be a whole number above 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(calls, capsys, tmp_path, words, hint):
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err
    assert err.count("\n") == 1
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_the_run_has_not_is_a_mistake(calls, capsys):
    assert run("train --tasks toy/catch --run here") == 0
    assert run("evaluate here --tasks toy/cach") == 2
    assert "did you mean toy/catch?" in capsys.readouterr().err


def test_tasks_are_listed_for_programs_and_people(capsys):
    assert main(["tasks", "--json"]) == 0
    listed = {task["name"]: task for task in json.loads(capsys.readouterr().out)}
    assert listed["dmc/cheetah-run"]["action"] == {"kind": "continuous", "size": 6}
    assert {"floor", "ceiling", "target", "source"} <= set(listed["atari/pong"])
    assert main(["tasks"]) == 0
    assert "dmc/cheetah-run" in capsys.readouterr().out


def test_the_doctor_names_what_is_missing_and_what_repairs_it(monkeypatch, capsys):
    from scalezero.envs import catalog
    from scalezero.envs.spec import SuiteMissing

    make = catalog.make

    def broken(task, *rest, **kinds):
        if task.name.startswith("dmc/"):
            raise SuiteMissing("no such package")
        return make(task, *rest, **kinds)

    monkeypatch.setattr(catalog, "make", broken)
    assert main(["doctor", "--json"]) == 0  # an extra that is missing is no illness
    report = json.loads(capsys.readouterr().out)
    assert report["findings"]["toy"]["works"]
    assert not report["findings"]["dmc"]["works"]
    assert "scalezero[dmc]" in report["findings"]["dmc"]["fix"]
    assert main(["doctor"]) == 0
    assert "to repair" in capsys.readouterr().out
