import json
import sys
from importlib.util import find_spec

import pytest

from scalezero.envs import textworld
from scalezero.envs.catalog import TEXTWORLD, find, make
from scalezero.envs.check import check
from scalezero.envs.spec import SuiteMissing
from scalezero.envs.textworld import GAMES, World, listed, together, world

made = pytest.mark.skipif(
    not (find_spec("textworld") and find_spec("jericho")), reason="textworld is not installed"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """What these tests make stays with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALEZERO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@made
@pytest.mark.slow
def test_a_game_keeps_its_promises():
    check(find("textworld/coin-easy", max_decisions=8), chance=False)


@made
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* is not fully supported:UserWarning")
def test_the_way_to_win_is_listed_and_earns_the_largest_score():
    task = find("textworld/cooking-2")
    game = World(task, world(task))
    shown, total = game.reset(), 0.0
    commands = game.walkthrough()
    for command in commands:
        assert command in shown.page.actions and not shown.over
        shown = game.step(command)
        total += shown.reward
    assert shown.over and len(commands) < task.max_decisions
    assert total == game.largest() == task.ceiling


@made
@pytest.mark.slow
def test_a_game_is_made_once_and_leaves_nothing_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    first = world(find("textworld/coin-easy"))
    monkeypatch.setattr(textworld, "_make", None)
    assert world(find("textworld/coin-easy")) == first
    assert not list(tmp_path.iterdir())
    assert json.loads(first.with_suffix(".json").read_text())["metadata"]["quest_length"] == 5


@made
@pytest.mark.slow
def test_a_game_made_elsewhere_is_the_same(monkeypatch, tmp_path):
    first = world(find("textworld/coin-easy"))
    monkeypatch.setenv("SCALEZERO_CACHE", str(tmp_path))
    second = world(find("textworld/coin-easy"))
    assert first != second and first.read_bytes() == second.read_bytes()


@made
def test_a_game_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setitem(textworld.GAMES, "coin-easy", ("tw-nothing", {}))
    with pytest.raises(RuntimeError, match=r"^textworld/coin-easy: .*cannot make .*tw-nothing"):
        make(find("textworld/coin-easy"), 1, seed=0, training=True)


@pytest.mark.parametrize("package", ["textworld", "jericho"])
def test_a_missing_package_is_one_sentence_with_its_remedy(monkeypatch, package):
    for each in ("textworld", "jericho"):
        monkeypatch.setitem(sys.modules, each, pytest if each != package else None)
    with pytest.raises(
        SuiteMissing, match=rf"^textworld/coin-easy: .* {package} .*'scalezero\[textworld\]'`"
    ):
        make(find("textworld/coin-easy"), 1, seed=0, training=True)


def test_every_world_has_its_task():
    assert set(GAMES) == set(TEXTWORLD)


def test_of_a_long_list_examining_goes_first():
    commands = ["take egg", "examine egg", "cook egg", "open oven"]
    assert listed(commands, 9) == ("cook egg", "examine egg", "open oven", "take egg")
    assert listed(commands, 3) == ("cook egg", "open oven", "take egg")
    assert listed([], 3) == ("look",)


def test_a_page_says_everything_once():
    room, things = "-= Hall =- A hall.", "You carry\n nothing."
    assert together("-= Hall =-\nA  hall.\n", room, things) == f"{room}\nYou carry nothing."
    end = "You win. *** The End *** You scored 1. > -= Hall =-0/5"
    assert together(end, room, things) == f"You win.\n{room}\nYou carry nothing."
    assert together("Taken.\n> -= Hall =-1/2", room, things).startswith("Taken.\n")
