"""Whose environments are whose while tasks get solved."""

import pytest

from scalezero.envs.catalog import find
from scalezero.run.collect import slots_of

SEEN = (find("toy/target"), find("toy/chain"), find("toy/catch"))


@pytest.mark.parametrize(
    ("solved", "freed", "expected"),
    [
        ("000", "share", [(0, 0, 1), (1, 0, 1), (2, 0, 1)]),
        ("100", "share", [(1, 0, 1), (1, 1, 1), (2, 0, 1)]),
        ("010", "share", [(0, 0, 1), (0, 1, 1), (2, 0, 1)]),
        ("010", "stop", [(0, 0, 1), (1, 0, 0), (2, 0, 1)]),
        ("110", "share", [(0, 0, 0), (1, 0, 0), (2, 0, 1)]),  # pictures cannot use vectors
        ("111", "share", [(0, 0, 1), (1, 0, 1), (2, 0, 1)]),
    ],
)
def test_environments_of_solved_tasks_go_to_open_ones_of_their_kind(solved, freed, expected):
    slots = slots_of(SEEN, [mark == "1" for mark in solved], freed)
    assert [(slot.number, slot.copy, slot.active) for slot in slots] == expected
    assert [slot.task for slot in slots] == [SEEN[number] for number, _, _ in expected]
