import numpy as np
import pytest

from scalezero.envs.catalog import ATARI, find, make
from scalezero.envs.check import check

pytest.importorskip("ale_py")


def play(task, envs, decisions, training, choose):
    """Every step of `decisions` decisions."""
    env = make(task, envs, seed=0, training=training)
    env.reset()
    steps = [env.step(choose(time)) for time in range(decisions)]
    env.close()
    return steps


def randomly(envs):
    random = np.random.default_rng(0)
    return lambda time: random.integers(18, size=(envs, 1)).astype(np.float32)


def test_a_game_keeps_its_promises():
    check(find("atari/pong"), envs=1, decisions=20)


@pytest.mark.slow
@pytest.mark.parametrize("game", ATARI)
def test_every_game_keeps_its_promises(game):
    check(find(f"atari/{game}"), decisions=200)


def test_after_a_lost_life_the_game_goes_on():
    env = make(find("atari/breakout"), 1, seed=0, training=True)
    env.reset()
    choose, lives, frames = randomly(1), [], []
    step_engine = env._engine.step

    def watched(index):
        outcome = step_engine(index)
        lives.append(int(outcome[4]["lives"][0]))
        frames.append(int(outcome[4]["episode_frame_number"][0]))
        return outcome

    env._engine.step = watched
    ends = []
    for time in range(300):
        if env.step(choose(time)).terminated[0]:
            ends.append(time)
            if lives[-1] == 0:
                break
    assert [lives[end] for end in ends] == [4, 3, 2, 1, 0]
    assert frames == list(range(frames[0], frames[0] + 4 * len(frames), 4))
    env.close()


def test_evaluation_plays_whole_games_and_training_lives():
    task = find("atari/breakout")
    lives = play(task, 2, 260, True, randomly(2))
    games = play(task, 2, 260, False, randomly(2))
    count = lambda steps: sum(int(step.terminated.sum()) for step in steps)
    assert count(lives) >= 4 * count(games) > 0


def test_training_clips_what_it_learns_from_but_not_the_score():
    task = find("atari/ms_pacman")
    for training in (True, False):
        steps = play(task, 2, 90, training, randomly(2))
        score = np.stack([step.score for step in steps])
        reward = np.stack([step.reward for step in steps])
        assert score.max() >= 10
        assert np.array_equal(reward, np.sign(score) if training else score)


@pytest.mark.parametrize("training", [True, False])
def test_the_time_limit_counts_decisions_and_truncates(training):
    still = lambda time: np.zeros((3, 1), np.float32)
    steps = play(find("atari/freeway", max_decisions=40), 3, 90, training, still)
    ends = [time for time, step in enumerate(steps, 1) if step.truncated.any()]
    assert ends == [40, 81]
    assert steps[39].truncated.all() and not any(step.terminated.any() for step in steps)


def test_an_end_on_the_restart_after_a_lost_life_is_reported_one_step_later():
    fire = lambda time: np.ones((4, 1), np.float32)
    first = next(
        time
        for time, step in enumerate(play(find("atari/breakout"), 4, 40, True, fire), 1)
        if step.terminated.any()
    )
    task = find("atari/breakout", max_decisions=first + 1)
    steps = play(task, 4, first + 3, True, fire)
    lost, restart, late, after = steps[first - 1 :]
    lost = lost.terminated
    assert lost.any() and restart.truncated[~lost].all()
    assert not (restart.terminated | restart.truncated)[lost].any()
    assert late.truncated[lost].all() and not late.reward[lost].any()
    assert np.array_equal(late.observation[lost], restart.observation[lost])
    assert not (after.terminated | after.truncated)[lost].any()


def test_the_picture_is_in_colour_and_upright():
    env = make(find("atari/breakout"), 1, seed=0, training=False)
    picture = env.reset()[0].astype(int)
    assert np.ptp(picture, axis=-1).max() > 100  # the rows of bricks
    assert picture[15:30].sum() > picture[35:55].sum()  # are in the upper half
    env.close()


def test_sticky_actions_are_an_option():
    task = find("atari/pong")
    sticky = find("atari/pong", options={"sticky": 0.9})
    same = [
        np.array_equal(a.observation, b.observation)
        for a, b in zip(
            play(task, 1, 40, False, randomly(1)),
            play(sticky, 1, 40, False, randomly(1)),
            strict=True,
        )
    ]
    assert not all(same)
