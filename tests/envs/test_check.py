from dataclasses import replace

import numpy as np
import pytest

from scalezero.envs import check as module
from scalezero.envs import toy
from scalezero.envs.catalog import find
from scalezero.envs.check import check
from scalezero.envs.spec import Page

TASK = find("toy/target")


class Broken:
    """The target toy with `spoil(step, time)` applied to every step."""

    def __init__(self, spoil, envs, seed):
        self.envs, self._inner = envs, toy.Target(TASK, envs, seed)
        self._spoil, self._time = spoil, 0

    def reset(self):
        return self._inner.reset()

    def step(self, action):
        self._time += 1
        return self._spoil(self._inner.step(action), self._time)

    def close(self):
        pass


def nan_reward(step, time):
    return replace(step, reward=step.reward * np.float32("nan"))


def double_precision(step, time):
    return replace(step, observation=step.observation.astype(np.float64))


def both_ends(step, time):
    return replace(step, terminated=step.truncated)


def endless(step, time):
    return replace(step, truncated=np.zeros_like(step.truncated))


def reward_on_restart(step, time):
    return replace(step, reward=np.ones_like(step.reward))


chance = np.random.default_rng(0)


def undetermined(step, time):
    return replace(step, reward=step.reward * np.float32(chance.random()))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (nan_reward, "reward is not finite"),
        (double_precision, r"shows float64\[2, 2\], not float32\[2, 2\]"),
        (both_ends, "both terminated and truncated"),
        (endless, "an episode is longer than 20 decisions"),
        (reward_on_restart, "the step after an end must restart the episode"),
        (undetermined, "the same seed and actions gave another trajectory"),
    ],
)
def test_a_broken_promise_is_named(monkeypatch, spoil, complaint):
    broken = lambda task, envs, *, seed, training: Broken(spoil, envs, seed)
    monkeypatch.setattr(module, "make", broken)
    with pytest.raises(ValueError, match=f"^toy/target: .*{complaint}"):
        check(TASK)


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("a text", r"shows object\[2\], not object\[2\] of Page"),
        (Page("a text", ()), "lists 0 actions, but 1 to 4 can be listed"),
        (Page("a text", tuple("abcde")), "lists 5 actions, but 1 to 4 can be listed"),
        (Page("a text", ("a", "a")), "lists an action twice"),
    ],
)
def test_a_broken_page_is_named(monkeypatch, page, complaint):
    class Scribbled(toy.Corridor):
        def reset(self):
            shown = super().reset().copy()
            shown[1] = page
            return shown

    corridor = find("toy/corridor")
    scribble = lambda task, envs, *, seed, training: Scribbled(corridor, envs, seed)
    monkeypatch.setattr(module, "make", scribble)
    with pytest.raises(ValueError, match=f"^toy/corridor: {complaint}"):
        check(corridor)


def test_a_seed_that_is_ignored_is_noticed(monkeypatch):
    same = lambda task, envs, *, seed, training: toy.Target(TASK, envs, 0)
    monkeypatch.setattr(module, "make", same)
    with pytest.raises(ValueError, match=r"^toy/target: another seed gave the same trajectory"):
        check(TASK)
    check(TASK, chance=False)


def test_a_reset_that_goes_elsewhere_is_noticed(monkeypatch):
    class Wandering(toy.Target):
        def reset(self):
            shown = super().reset()
            self._seed += 1
            return shown

    wander = lambda task, envs, *, seed, training: Wandering(TASK, envs, seed)
    monkeypatch.setattr(module, "make", wander)
    with pytest.raises(ValueError, match=r"reset\(\) twice shows different beginnings"):
        check(TASK)


def test_an_observation_written_over_is_noticed(monkeypatch):
    class Reusing(toy.Target):
        def _draw(self):
            shown = super()._draw()
            if self._time.any():
                self._buffer[:] = shown
            else:
                self._buffer = shown
            return self._buffer

    reuse = lambda task, envs, *, seed, training: Reusing(TASK, envs, seed)
    monkeypatch.setattr(module, "make", reuse)
    with pytest.raises(ValueError, match=r"step\(\) changes observations given out"):
        check(TASK)
