import sys
from math import isnan

import numpy as np
import pytest

from scalezero.envs.catalog import ATARI, DMC, find, make, names
from scalezero.envs.scores import summarise
from scalezero.envs.spec import Discrete, SuiteMissing, UnknownTask

SUITES = ["dm_control", "envpool", "ale_py", "gymnasium", "jericho", "textworld"]
UNIZERO = {  # UniZero, Table 10: one model for each game, 100k steps
    **{"alien": 600, "amidar": 96, "assault": 608, "asterix": 1216, "bank_heist": 400},
    **{"battle_zone": 11410, "boxing": 7, "breakout": 8, "chopper_command": 2205},
    **{"crazy_climber": 13666, "demon_attack": 991, "freeway": 10, "frostbite": 310},
    **{"gopher": 853, "hero": 2005, "jamesbond": 405, "kangaroo": 1885, "krull": 4484},
    **{"kung_fu_master": 11400, "ms_pacman": 900, "pong": -10, "private_eye": 500},
    **{"qbert": 1056, "road_runner": 1100, "seaquest": 620, "up_n_down": 2823},
}


def test_the_benchmarks_are_complete():
    assert len(DMC) == 18 and len(ATARI) == 26
    assert len(set(names())) == len(names())
    assert set(UNIZERO) == set(ATARI)


@pytest.mark.parametrize("suite", SUITES)
def test_named_tasks_are_known_where_no_suite_is_installed(monkeypatch, suite):
    monkeypatch.setitem(sys.modules, suite, None)
    for name in names():
        task = find(name)
        assert task.name == name and task.source


def test_a_missing_suite_is_one_sentence_with_its_remedy(monkeypatch):
    for module in ("ale_py", "ale_py.vector_env", "envpool", "dm_control"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, extra in (("atari/pong", "atari"), ("dmc/cheetah-run", "dmc")):
        with pytest.raises(
            SuiteMissing, match=rf"^{name}: .* `pip install 'scalezero\[{extra}\]'`$"
        ):
            make(find(name), 1, seed=0, training=True)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dmc/cheetah_run", "dmc/cheetah-run"),
        ("atari/Pong", "atari/pong"),
        ("cartpole-swingup", "dmc/cartpole-swingup"),
        ("toy/cach", "toy/catch"),
        ("textworld/coin-esay", "textworld/coin-easy"),
    ],
)
def test_an_unknown_name_suggests_a_near_one(name, near):
    with pytest.raises(UnknownTask, match=rf"^{name}: no such task; did you mean {near}\?$"):
        find(name)


def test_names_with_commas_between_them_are_no_task():
    with pytest.raises(UnknownTask, match="are separated by spaces, not commas"):
        find("toy/catch,toy/chain")


def test_a_name_near_nothing_says_where_to_look():
    with pytest.raises(UnknownTask, match="`scalezero tasks` lists them all"):
        find("zzz")


def test_changing_the_action_repeat_keeps_the_length_of_an_episode():
    assert find("dmc/cheetah-run").max_decisions == 250
    assert find("dmc/pendulum-swingup").max_decisions == 125
    assert find("dmc/cheetah-run", action_repeat=2).max_decisions == 500
    assert find("dmc/cheetah-run", action_repeat=2, max_decisions=10).max_decisions == 10
    assert find("dmc/cheetah-run", target=700.0).target == 700


def test_a_bad_change_names_the_task():
    with pytest.raises(ValueError, match=r"^toy/catch: .*'goal'"):
        find("toy/catch", goal=1.0)
    with pytest.raises(ValueError, match=r"^dmc/walker-walk: action_repeat = 0 must be"):
        find("dmc/walker-walk", action_repeat=0)


def test_atari_games_share_their_actions():
    assert {find(f"atari/{game}").action for game in ATARI} == {Discrete(18, "atari")}


def test_games_outside_the_benchmark_have_no_scale():
    assert isnan(find("atari/tetris").normalised(10.0))
    with pytest.raises(UnknownTask):
        find("atari/tetriss")


def test_published_human_normalised_scores_are_reproduced():
    returns = {f"atari/{game}": float(x) for game, x in UNIZERO.items()}
    summary = summarise({name: find(name).normalised(x) for name, x in returns.items()})
    assert round(summary.mean, 3) == 0.386
    assert round(summary.median, 3) == 0.215


def test_tasks_without_a_scale_are_left_out_of_the_mean():
    summary = summarise({"dmc/cheetah-run": 0.5, "toy/count": find("toy/count").normalised(3.0)})
    assert summary.mean == summary.median == 0.5
    assert np.isnan(summarise({"toy/count": np.nan}).mean)
