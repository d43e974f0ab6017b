"""What searches read is made ready when one asks, and never without."""

import dataclasses
import weakref

import pytest
from tiny import tiny

from scalezero.run.actor import Actor
from scalezero.run.build import world_of
from scalezero.run.folder import RunFolder
from scalezero.run.run import Run


@pytest.fixture
def made(monkeypatch):
    """All worlds that were made ready, as they came out."""
    found = []

    def ready(world):
        found.append(dataclasses.replace(world))
        return found[-1]

    monkeypatch.setattr("scalezero.run.actor.ready", ready)
    return found


def test_an_actor_makes_its_world_ready_once_and_lets_go_of_it(made):
    world = world_of(tiny())
    kept, actor = weakref.ref(world), Actor(world)
    del world
    assert kept() is not None
    assert not made
    first = actor.world
    assert actor.world is first
    assert len(made) == 1
    assert made[0] is first
    assert kept() is None


def test_updates_without_a_search_between_make_nothing_ready(tmp_path, made):
    config = tiny()
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    while not run.updates:
        run.turn()
    made.clear()
    for _ in range(2):
        run.learn(2)
    assert not made
    run.turn()
    run.close()
    assert len(made) == 1
