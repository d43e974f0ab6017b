import pytest

from scalezero.run import pace
from scalezero.run.pace import Busy, Mark, rates


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_work_that_overlaps_counts_once(clock):
    busy = Busy()
    clock[0] += 5  # nothing to do
    with busy.working():
        clock[0] += 1
        with busy.working():  # as updates begin while a search is under way
            clock[0] += 2
            assert busy.seconds == 3
        clock[0] += 4
    clock[0] += 8
    assert busy.seconds == 7


def test_work_that_fails_has_ended(clock):
    busy = Busy()
    with pytest.raises(KeyError), busy.working():
        clock[0] += 1
        raise KeyError
    clock[0] += 1
    assert busy.seconds == 1


def test_rates_are_of_the_time_in_between():
    before = Mark(10.0, 4, {"toy/catch": 100, "toy/reach": 100, "dmc/cheetah-run": 50}, busy=3.0)
    now = Mark(20.0, 9, {"toy/catch": 120, "toy/reach": 100, "dmc/cheetah-run": 80}, busy=10.5)
    assert rates(before, now) == {
        "decisions_per_second": 5.0,
        "toy/decisions_per_second": 2.0,
        "dmc/decisions_per_second": 3.0,
        "updates_per_second": 0.5,
        "device_idle": 0.25,
    }
