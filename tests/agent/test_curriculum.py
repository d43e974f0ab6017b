"""When tasks count as solved and models grow, on histories made up for it."""

import json

import pytest

from scalezero.agent.curriculum import advanced, curriculum, curriculum_of, judged, reason_to_grow
from scalezero.config import DpsSettings
from scalezero.envs.catalog import find

# floors 0, targets 90 and 50
TASKS = (
    find("toy/target", floor=0.0, ceiling=100.0, target=90.0),
    find("toy/chain", floor=0.0, ceiling=100.0, target=50.0),
)


def after(settings, *evaluations, start=None):
    """The curriculum and all that was said after some evaluations, one list of means each."""
    now, said = start or curriculum(len(TASKS)), []
    for means in evaluations:
        now, more = judged(now, TASKS, [(mean, mean) for mean in means], settings)
        said += more
    return now, said


def test_a_task_is_solved_when_its_target_is_reached():
    now, said = after(DpsSettings(), [89.9, 50.0])
    assert now.solved == (False, True)
    assert said == ["toy/chain solved: mean return 50.0, target 50.0"]


def test_several_evaluations_are_averaged_and_all_of_them_are_needed():
    settings = DpsSettings(average=2)
    assert after(settings, [95.0, 0.0])[0].solved == (False, False)
    assert after(settings, [95.0, 0.0], [84.0, 0.0])[0].solved == (False, False)
    assert after(settings, [0.0, 0.0], [95.0, 0.0], [86.0, 0.0])[0].solved == (True, False)


def test_a_lower_confidence_bound_wants_returns_that_agree():
    settings = DpsSettings(confidence=2.0)
    spread, _ = judged(curriculum(2), TASKS, [(60.0, 130.0), (0.0,)], settings)
    alike, _ = judged(curriculum(2), TASKS, [(92.0, 93.0), (0.0,)], settings)
    assert (spread.solved[0], alike.solved[0]) == (False, True)


def test_targets_can_be_normalised():
    assert after(DpsSettings(target=0.3), [29.0, 30.0])[0].solved == (False, True)


def test_a_solved_task_is_reopened_only_well_below_its_target():
    settings = DpsSettings(reopen=0.8)
    solved, _ = after(settings, [90.0, 50.0])
    slipped, said = after(settings, [72.0, 39.9], start=solved)
    assert slipped.solved == (True, False)
    assert said == ["toy/chain reopened: mean return 39.9 is below 40.0"]
    assert after(settings, [0.0, 45.0], start=slipped)[0].solved == (False, False)


def stages(settings, updates, solved_at, total=8):
    """The updates at which stages begin, if so many tasks are solved from these updates on."""
    now, begins = curriculum(total), []
    for update in range(0, updates, 1000):
        count = sum(update >= at for at in solved_at)
        solved = tuple(number < count for number in range(total))
        now = type(now)(**(vars(now) | {"solved": solved}))
        if reason_to_grow(now, update, settings):
            now = advanced(now, update)
            begins.append(update)
    return begins


@pytest.mark.parametrize(
    ("first", "each", "begins"),
    [  # the paper's budgets: Atari, DMC
        (50_000, 20_000, [50_000, 70_000, 90_000, 110_000]),
        (10_000, 5_000, [10_000, 15_000, 20_000, 25_000]),
    ],
)
def test_with_nothing_solved_stages_begin_when_the_last_has_lasted_long_enough(first, each, begins):
    settings = DpsSettings(on=True, stages=5, first_updates=first, stage_updates=each)
    assert stages(settings, 200_000, []) == begins


def test_a_stage_ends_early_when_its_share_of_the_unsolved_tasks_is_solved():
    settings = DpsSettings(on=True, stages=5, first_updates=10_000, stage_updates=100_000)
    # 2 of the quota ceil(6 / 4), 2 of ceil(4 / 3), 2 of ceil(2 / 2), 1 of 1
    solved_at = [1_000, 11_000, 20_000, 21_000, 30_000, 31_000, 40_000]
    assert stages(settings, 100_000, solved_at) == [11_000, 21_000, 31_000, 40_000]
    settings = DpsSettings(on=True, stages=2, first_updates=0, stage_updates=100_000)
    assert stages(settings, 50_000, [5_000, 6_000, 7_000]) == []
    assert stages(settings, 50_000, [5_000, 6_000, 7_000, 8_000]) == [8_000]


def test_stage_0_lasts_its_minimum_whatever_is_solved():
    settings = DpsSettings(on=True, stages=3, first_updates=10_000, stage_updates=100_000)
    assert stages(settings, 50_000, [0] * 8)[0] == 10_000


def test_one_stage_never_grows():
    settings = DpsSettings(on=True, stages=1, first_updates=0, stage_updates=1)
    assert stages(settings, 50_000, [0] * 8) == []


def test_what_is_off_never_grows():
    settings = DpsSettings(stages=2, first_updates=0, stage_updates=1)
    assert stages(settings, 50_000, [0] * 8) == []


def test_a_curriculum_survives_json():
    now = advanced(after(DpsSettings(average=2), [95.0, 10.0], [95.0, 10.0])[0], 7)
    assert curriculum_of(json.loads(json.dumps(now.as_json()))) == now
