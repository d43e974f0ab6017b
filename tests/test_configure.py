import pytest

from scalezero import configure
from scalezero.config import Config
from scalezero.configure import ConfigError
from scalezero.run.build import table_of


def said(**kinds) -> str:
    with pytest.raises(ConfigError) as caught:
        configure.resolve(**kinds)
    return str(caught.value)


def flagged(key: str, text: str) -> str:
    return said(tasks=["toy/catch"], flags={key: text})


@pytest.fixture
def toml(tmp_path):
    def write(text: str, name: str = "mine.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("preset", configure.presets())
def test_every_preset_resolves_and_its_tasks_exist(preset):
    config = configure.resolve(preset=preset)
    assert tuple(task.name for task in configure.tasks(config)) == config.tasks


@pytest.mark.parametrize("preset", configure.presets())
def test_what_is_dumped_reads_back_equal(preset, toml):
    config = configure.resolve(preset=preset, flags={"learn.learning_rate": "1e-5"})
    assert configure.read(toml(configure.dump(config))) == config


def test_changes_to_a_task_survive_the_dump(toml):
    flags = {"env.gym/my.module:Mine-v0.ceiling": "12", "env.toy/catch.floor": "-5"}
    config = configure.resolve(tasks=["gym/my.module:Mine-v0", "toy/catch"], flags=flags)
    assert config.env["gym/my.module:Mine-v0"].ceiling == 12
    assert configure.read(toml(configure.dump(config))) == config


def test_a_flag_wins_over_the_file_and_the_file_over_the_preset(toml):
    file = toml("[model]\nembed = 128\nlayers = 3\n")
    config = configure.resolve(preset="dmc8-small", file=file, flags={"model.layers": "5"})
    assert (config.model.embed, config.model.layers) == (128, 5)
    assert config.tasks == configure.resolve(preset="dmc8-small").tasks


def test_a_file_wins_over_its_base(toml):
    toml("tasks = ['toy/catch']\nseed = 3\n[model]\nembed = 32\nlayers = 1\n", "low.toml")
    config = configure.resolve(file=toml("base = 'low.toml'\n[model]\nlayers = 4\n"))
    assert (config.seed, config.model.embed, config.model.layers) == (3, 32, 4)


def test_a_base_may_be_a_preset(toml):
    config = configure.resolve(file=toml("base = 'quickstart'\nseed = 7\n"))
    assert config == configure.resolve(preset="quickstart", flags={"seed": "7"})


def test_other_tasks_leave_behind_what_was_said_of_the_old_ones(toml):
    file = toml("tasks = ['toy/catch']\n[env.'toy/catch']\nfloor = 0.0\n")
    assert configure.resolve(file=file, tasks=["dmc/cheetah-run"]).env == {}


def test_changes_to_a_task_reach_it():
    flags = {"env.toy/catch.target": "3", "env.toy/catch.floor": "1"}
    (task,) = configure.tasks(configure.resolve(tasks=["toy/catch"], flags=flags))
    assert (task.target, task.floor) == (3, 1)


def test_a_task_may_have_a_discount_of_its_own():
    names = ("toy/catch", "gym/CartPole-v1")
    flags = {"env.gym/CartPole-v1.discount": "0.5", "learn.discount": "0.9"}
    table = table_of(configure.resolve(tasks=names, flags=flags))
    assert table.names == ("gym/CartPole-v1", "toy/catch")
    assert table.discount == (0.5, 0.9)


def test_changed_names_the_keys_that_differ():
    old = Config(tasks=("toy/catch",))
    new = configure.resolve(
        tasks=["toy/catch"], flags={"model.embed": "96", "env.toy/catch.floor": "1.5"}
    )
    assert configure.changed(old, old) == {}
    assert configure.changed(old, new) == {
        "model.embed": (64, 96),
        "env.toy/catch.floor": (None, 1.5),
    }


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("model.layer", "3", "--model.layer is not a setting; did you mean --model.layers?"),
        ("embed", "3", "--embed is not a setting; did you mean --model.embed?"),
        ("modle", "3", "--modle is not a setting; did you mean --model?"),
        ("model.layers", "abc", "--model.layers = 'abc' is a str, but must be int"),
        ("model.layers", "2.5", "--model.layers = 2.5 is a float, but must be int"),
        ("model.layers", "0", "--model.layers = 0 must be greater than 0"),
        ("model.router", "papr", "--model.router = 'papr' must be 'trained' or 'paper'"),
        ("model", "3", "--model = 3 is an int, but must be a table of settings"),
        (
            "env.toy/catch.flor",
            "3",
            "--env.toy/catch.flor is not a setting; did you mean --env.toy/catch.floor?",
        ),
        ("env.toy/cat.floor", "3", "env.toy/cat is not one of the run's tasks; name it in tasks"),
    ],
)
def test_a_bad_flag_is_one_sentence(key, text, sentence):
    assert flagged(key, text) == sentence


def test_settings_that_do_not_fit_each_other_say_what_would():
    assert flagged("model.heads", "7").startswith("model.heads = 7 does not split model.embed")


def test_missing_tasks_and_unknown_presets_say_what_to_do():
    assert said() == "tasks is missing, and has no default; give --preset or --tasks"
    assert said(preset="dmc") == "dmc: no such preset; did you mean dmc8?"
    assert "choose one of" in said(preset="zzz")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("[model]\nlayers = '2'", ": model.layers = '2' is a str, but must be int"),
        ("[model]\nlayer = 2", ": model.layer is not a setting; did you mean model.layers?"),
        ("tasks = 'toy/catch'", ": tasks = 'toy/catch' is a str, but must be a list"),
        ("base = 'mine.toml'", ": is based on itself; take out one base = …"),
        ("base = 3", ": base = 3 must be a preset's name or a .toml file"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(toml, text, rest):
    file = toml(text)
    assert said(file=file) == f"{file}{rest}"


def test_an_unreadable_file_says_so(toml, tmp_path):
    assert ": not TOML: " in said(file=toml("x =="))
    near = said(file=tmp_path / "min.toml")
    assert near == f"{tmp_path}/min.toml: no such config file; did you mean {tmp_path}/mine.toml?"
    assert said(file=tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_every_setting_is_documented():
    assert all(field.description for _, field in configure.settings())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"dps.rank": "65"}, "dps.rank = 65 is more than the 64 rows of a matrix that it adapts"),
        (
            {"run.decisions": "20_000"},
            "dps.stages = 5: the last stage may begin as late as update 25,000, but the run has "
            "9,872; lower dps.first_updates or dps.stage_updates",
        ),
        (
            {"dps.stages": "2", "dps.first_updates": "0", "dps.stage_updates": "60_000"},
            "dps.stages = 2: the last stage may begin as late as update 60,000, but the run has "
            "49,872; lower dps.first_updates or dps.stage_updates",
        ),
        (
            {"dps.confidence": "1", "run.evaluation_episodes": "1"},
            "dps.confidence = 1.0 needs more than the one episode it would judge; raise "
            "run.evaluation_episodes or dps.average",
        ),
        ({"dps.target": "1.5"}, "--dps.target = 1.5 must be less than or equal to 1"),
    ],
)
def test_impossible_parameter_scaling_is_said_before_a_run(flags, sentence):
    flags = {"dps.on": "true"} | flags
    assert said(tasks=["dmc/cartpole-balance"], flags=flags) == sentence


@pytest.mark.parametrize(
    ("task", "flags", "sentence"),
    [
        (
            "dmc/cartpole-balance",
            {"env.dmc/cartpole-balance.target": "-1"},
            'env."dmc/cartpole-balance".target = -1 must be a number above the task\'s floor 0 for '
            "dps to say when it is solved",
        ),
        (
            "dmc/cartpole-balance",
            {"env.dmc/cartpole-balance.target": "1_200"},
            'env."dmc/cartpole-balance".target = 1200 is above the task\'s ceiling 1000; lower it, '
            'or raise env."dmc/cartpole-balance".ceiling if more can be reached',
        ),
        (
            "toy/count",
            {"dps.target": "0.5"},
            'env."toy/count".floor = nan, ceiling = nan: dps.target is normalised, so both must be '
            "numbers, the ceiling the larger one",
        ),
    ],
)
def test_a_task_that_could_never_be_solved_is_named(task, flags, sentence):
    config = configure.resolve(tasks=[task], flags={"dps.on": "true"} | flags)
    with pytest.raises(ConfigError) as caught:
        configure.tasks(config)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("preset", [p for p in configure.presets() if p != "quickstart"])
def test_every_long_preset_can_scale_its_parameters(preset):
    config = configure.resolve(preset=preset, flags={"dps.on": "true"})
    assert len(configure.tasks(config)) == len(config.tasks)
