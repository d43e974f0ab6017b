import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from fake_game import DIE, HANG, ON, RAISE, TASK, WIN, Fake

from scalezero.envs.spec import TaskError
from scalezero.envs.workers import FAILURES, Workers


@pytest.fixture
def begun():
    """Makes fake games and closes them after the test."""
    made = []

    def begin(plan="plain", *rest, envs=2, **times):
        made.append(Workers(TASK, envs, Fake, plan, *rest, **times))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def take(env, *actions):
    return env.step(np.array(actions, np.float32)[:, None])


def texts(pages):
    return [page.text for page in pages]


def processes(env):
    return [psutil.Process(worker._process.pid) for worker in env._workers]


def test_episodes_end_and_restart_as_steps_say(begun):
    env = begun()
    assert texts(env.reset()) == texts(env.reset()) == ["time 0", "time 0"]
    steps = [take(env, ON, WIN), *(take(env, ON, ON) for _ in range(4))]
    assert [texts(step.observation)[0] for step in steps] == [f"time {t}" for t in (1, 2, 3, 4, 0)]
    assert [texts(step.observation)[1] for step in steps] == [f"time {t}" for t in (1, 0, 1, 2, 3)]
    assert [step.terminated.tolist() for step in steps[:2]] == [[False, True], [False, False]]
    assert [bool(step.truncated[0]) for step in steps] == [False, False, False, True, False]
    assert [step.reward.tolist() for step in steps[3:]] == [[1, 1], [0, 1]]
    assert env.counts["pages"] == 4 + 10 and not env.dropped.any()


@pytest.mark.parametrize("trouble", [DIE, HANG, RAISE])
def test_a_lost_episode_is_truncated_where_it_was_last_seen_and_counted(begun, trouble):
    env = begun(step_seconds=1.5 if trouble == HANG else 60.0)
    env.reset()
    take(env, ON, ON)
    lost = take(env, ON, trouble)
    assert texts(lost.observation) == ["time 2", "time 1"]
    assert lost.truncated.tolist() == [False, True] and not lost.terminated.any()
    assert lost.reward.tolist() == [1, 0]
    after = take(env, ON, trouble)  # where an episode has ended, the action is ignored
    assert texts(after.observation) == ["time 3", "time 0"]
    assert after.reward.tolist() == [1, 0] and not after.truncated.any()
    assert env.dropped.tolist() == [0, 1]
    assert texts(take(env, ON, ON).observation) == ["time 4", "time 1"]


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [(DIE, "its process died with exit code 7"), (RAISE, "it raised KeyError: 'lost'")],
)
def test_an_environment_that_fails_again_and_again_stops_the_run(begun, trouble, cause):
    env = begun(envs=1)
    env.reset()
    with pytest.raises(
        RuntimeError,
        match=rf"^fake/game: environment 0 failed {FAILURES} times in a row, .*{cause}$",
    ):
        for _ in range(2 * FAILURES):
            take(env, trouble)
    assert env.dropped.tolist() == [FAILURES]


def test_a_good_episode_forgives_the_failures_before_it(begun):
    env = begun(envs=1)
    env.reset()
    for _ in range(FAILURES):
        take(env, DIE)
        take(env, ON)  # restarts
        take(env, WIN)
        take(env, ON)
    assert env.dropped.tolist() == [FAILURES]


def test_a_start_that_fails_once_is_tried_again(begun, tmp_path):
    env = begun("slip", tmp_path, envs=1)
    assert texts(env.reset()) == ["time 0"]
    assert not env.dropped.any()  # no episode was under way


def test_a_start_that_always_fails_is_given_up(begun):
    env = begun("lame", envs=1)
    with pytest.raises(RuntimeError, match=r"^fake/game: .* died with exit code 4$"):
        env.reset()


def test_what_the_game_refuses_is_said_in_its_words():
    with pytest.raises(TaskError, match=r"^fake/game: this file is no game$"):
        Workers(TASK, 2, Fake, "refuse")


@pytest.mark.parametrize(
    ("plan", "cause"), [("crash", "its process died with exit code 3"), ("sleep", "too long")]
)
def test_a_game_that_cannot_be_opened_is_named(plan, cause):
    with pytest.raises(RuntimeError, match=rf"^fake/game: cannot be opened, because .*{cause}$"):
        Workers(TASK, 1, Fake, plan, start_seconds=1.0 if plan == "sleep" else 60.0)


def test_an_action_that_is_not_listed_is_refused(begun):
    env = begun()
    env.reset()
    with pytest.raises(ValueError, match=r"^fake/game: action 5 is not on a page that lists 5$"):
        take(env, ON, 5.0)
    assert texts(take(env, ON, ON).observation) == ["time 1", "time 1"]


def test_closing_ends_every_process_also_one_that_hangs(begun):
    env = begun()
    env.reset()
    env._workers[0].send("hang")
    running = processes(env)
    env.close()
    env.close()
    assert not any(process.is_running() for process in running)


def test_workers_do_not_outlive_a_parent_that_is_killed():
    program = (
        "import os, sys; sys.path[:] = sys.argv[1:]; "
        "from fake_game import TASK, Fake; from scalezero.envs.workers import Workers; "
        "env = Workers(TASK, 2, Fake, 'plain'); env.reset(); env._workers[0].send('hang'); "
        "print(*(each._process.pid for each in env._workers), flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", program, *sys.path], capture_output=True, text=True
    )
    orphans = [int(word) for word in parent.stdout.split()]
    assert len(orphans) == 2
    until = time.monotonic() + 30
    while any(map(psutil.pid_exists, orphans)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, orphans))
