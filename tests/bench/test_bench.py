"""That every part is measured, and says what of and against what. How long it takes is no law."""

import ast
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from scalezero import configure
from scalezero.bench.bench import bench, like, likes, parts
from scalezero.bench.work import work
from scalezero.cli import main
from scalezero.nets.experts import experts

SMALL = {
    "model.embed": "16",
    "model.layers": "1",
    "model.heads": "2",
    "model.experts": "2",
    "model.expert_width": "16",
    "model.shared_width": "16",
    "model.head_width": "16",
    "model.vit_embed": "16",
    "model.vit_depth": "1",
    "search.simulations": "2",
    "search.candidates": "3",
    "learn.rows": "2",
    "learn.unroll": "2",
    "learn.n_step": "2",
    "learn.updates_per_call": "2",
    "data.envs": "4",
    "data.groups": "1",
    "data.replay_rows": "4096",
    "data.warmup_decisions": "0",
}
TASKS = ("toy/target", "toy/catch")
ROWS = {"search": (4, 8), "experts": (8, 64), "encoder": (4,)}
UNITS = {
    "search": "decisions",
    "experts": "tokens",
    "encoder": "observations",
    "environments": "decisions",
    "replay": "windows",
    "update": "windows",
    "collection": "decisions",
}


@pytest.fixture(scope="module")
def config():
    return configure.resolve(tasks=TASKS, flags=SMALL)


@pytest.mark.parametrize("part", UNITS)
def test_every_part_is_measured(part, config):
    made = bench(part, config, seconds=0.0, rows=ROWS.get(part, ()))
    said = json.loads(json.dumps(made.as_json()))
    assert said["part"] == part and said["ceilings"]["flops"] > 0 and said["ceilings"]["bytes"] > 0
    for each in said["measurements"]:
        assert each["unit"] == UNITS[part] and each["items"] > 0
        assert 0 < each["seconds"]["low"] <= each["seconds"]["median"] <= each["seconds"]["high"]
        counted = part in ("search", "experts", "encoder", "update")
        assert (each["flops"] > 0) == counted


def test_a_search_of_more_rows_is_more_work(config):
    few, many = bench("search", config, seconds=0.0, rows=(4, 8)).measurements
    assert many.work.flops == 2 * few.work.flops and (few.items, many.items) == (4, 8)


def test_routing_has_no_part_in_what_experts_must_do():
    layer = experts(8, 3, 16, 4, 2, "trained", key=jax.random.key(0))
    through = lambda layer, x: layer(x)[0]
    for tokens in (4, 10, 600):
        must = work(through, layer, jnp.ones((tokens, 8))).flops
        assert must == 2 * tokens * (8 * 3 + 2 * 3 * 8 * 16 + 2 * 8 * 4)  # router, picks, shared


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_what_is_measured_so_far(terminal, config, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if terminal else "0")
    first, *_ = bench("replay", config, seconds=0.0).measurements
    printed = capsys.readouterr()
    frames = printed.err.split("measuring on")
    assert not printed.out and (len(frames) > 1) == terminal
    if terminal:
        assert first.name not in frames[0] and first.name in frames[1]


def test_a_narrow_terminal_shows_whole_names(config):
    width, made = 70, bench("replay", config, seconds=0.0)
    long = "".join(f"{number}," for number in range(30))
    named = replace(made, measurements=(replace(made.measurements[0], name=long),))
    screen = Console(width=width, file=StringIO())
    named.show(screen)
    lines = screen.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert long in "".join(line.split()[0] for line in lines if line.strip())


@pytest.mark.slow
def test_the_whole_loop_is_measured_as_the_command_line_asks(tmp_path, capsys):
    flags = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
    out = tmp_path / "deep" / "whole.json"
    words = ["bench", "end-to-end", "--tasks", *TASKS, *flags, "--seconds", "1", "--out", str(out)]
    assert main(words) == 0
    named = {each["name"]: each for each in json.loads(out.read_text())["measurements"]}
    assert named.keys() == {"decide", "learn", "train"}
    assert named["learn"]["items"] == 2 * 2 * 2  # updates of a call, tasks, rows
    assert named["decide"]["items"] == 2 * 4  # all environments of two tasks
    shares = {"share_waiting_for_environments", "share_device_idle"}
    told = {"decide": shares, "learn": {"share_learner_idle"}, "train": shares}
    for name, some in told.items():
        assert all(0 <= named[name][share] < 1 for share in some)
    assert "decide" in capsys.readouterr().out


@pytest.mark.parametrize("name", likes())
def test_the_settings_of_others_are_what_was_measured_of_them(name):
    config = configure.resolve(file=like(name))
    paper = name.endswith("paper")
    assert (config.model.embed, config.model.layers) == ((768, 4) if paper else (128, 2))
    assert (config.model.heads, config.model.experts) == ((24, 8) if paper else (4, 4))
    assert config.search.simulations == (50 if paper else 16)
    assert config.data.envs == 8
    assert not config.model.rematerialise
    assert all(task.startswith(name.split("-")[1]) for task in config.tasks)
    if "dmc" in name:
        assert config.search.candidates == (20 if paper else 16)
        assert len(config.tasks) * config.learn.rows == (128 if paper else 512)
    elif not paper:
        assert len(config.tasks) * config.learn.rows == 64 and config.learn.unroll == 10


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["searching"], "searching: must be one of search, experts, encoder, "),
        (["end-to-end", "--like", "lightzero"], "--like lightzero: must be one of lightzero-"),
        (["search", "--like", "lightzero-dmc-small"], "--like: stands for a whole config"),
        (["search", "--tasks", *TASKS, "--rows", "7"], "--rows 7: must be a multiple of the 2 "),
        (["update", "--tasks", *TASKS, "--rows", "4"], "--rows: update has no rows to choose"),
        (["search", "--tasks", *TASKS, "--out", "/proc/x/y.json"], "--out /proc/x/y.json: cannot"),
        (["experts", "--tasks", "toy/catch", "--model.experts", "0"], "there are no experts"),
        (["search", "--tasks", "toy/catch", "--rows", "0"], "'0' must be a whole number above 0"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words, sentence, capsys):
    assert main(["bench", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_every_part_is_named_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(part in said for part in parts())


@pytest.mark.parametrize("name", likes())
def test_the_reference_is_measured_at_the_same_size(name):
    # The script imports PyTorch, which is not here, so its table is read and not run.
    script = Path(__file__).parents[2] / "benchmarks" / "lightzero.py"
    tree = ast.parse(script.read_text())
    (made,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Size")
    fields = [node.target.id for node in made.body if isinstance(node, ast.AnnAssign)]
    (sizes,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "SIZES"
    )
    named = {key.value: call for key, call in zip(sizes.keys, sizes.values, strict=True)}
    size = dict(zip(fields, map(ast.literal_eval, named[name].args), strict=True))
    config = configure.resolve(file=like(name))
    model, search, learn = config.model, config.search, config.learn
    assert size["continuous"] == ("dmc" in name)
    for field in ("embed", "layers", "heads", "experts"):
        assert size[field] == getattr(model, field)
    assert (size["simulations"], size["context"]) == (search.simulations, search.context)
    assert size["candidates"] == (search.candidates if size["continuous"] else 18)
    assert (size["unroll"], size["windows"]) == (learn.unroll, len(config.tasks) * learn.rows)
