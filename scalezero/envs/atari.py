"""How do the Atari games run? In ale-py's vector of C++ threads, 64×64 RGB, all 18 actions.

Training and evaluation differ in two ways. In training the loss of a life ends the episode (the
game goes on underneath) and `reward` is clipped to its sign; in evaluation an episode is a whole
game. `score` is the game's own in both. The time limit is one of the game, not of a life.

Differs: LightZero's limit in training restarts at every lost life.
"""

import os

import numpy as np

from scalezero.envs.spec import Step, Task, VectorEnv, seeds

NOOP = 0


def make(task: Task, envs: int, *, seed: int, training: bool) -> VectorEnv:
    """Games of `task`.

    Options: `sticky` (probability that the last action is repeated, 0), `noops` (most no-ops at
    the start of a game, 30), `threads` (an eighth of the cores).
    """
    return Atari(task, envs, seed, training)


class Atari:
    """All games of one task in one engine."""

    def __init__(self, task: Task, envs: int, seed: int, training: bool) -> None:
        """Load the games; nothing runs before `reset`."""
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        height, width, _ = task.observation.shape
        self.envs = envs
        self._training = training
        self._seeds = seeds(seed, envs)
        self._engine = AtariVectorEnv(
            task.name.removeprefix("atari/"),
            envs,
            num_threads=int(task.options.get("threads", max(1, (os.cpu_count() or 1) // 8))),
            max_num_frames_per_episode=task.max_decisions * task.action_repeat,
            repeat_action_probability=float(task.options.get("sticky", 0.0)),
            full_action_space=True,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            img_height=height,
            img_width=width,
            grayscale=False,
            stack_num=1,
            frameskip=task.action_repeat,
            noop_max=int(task.options.get("noops", 30)),
            # `episodic_life` would start a new game at every lost life; this only reports it.
            life_loss_info=training,
            reward_clipping=False,
            use_fire_reset=False,
        )
        self._start()

    def _start(self) -> None:
        self._over = np.zeros(self.envs, bool)  # ended at the last step: the next one restarts
        self._late = np.zeros((2, self.envs), bool)  # ends that fell on a restart

    def reset(self) -> np.ndarray:
        """The first pictures of new games."""
        self._start()
        self._shown = self._engine.reset(seed=self._seeds)[0][:, 0]
        return self._shown

    def step(self, action: np.ndarray) -> Step:
        """Play `action`; where an episode has just ended, a no-op.

        After a lost life the engine plays that no-op in the game that goes on. Should the game
        end on it, the new episode shows its one picture twice and ends as the game did.
        """
        index = np.where(self._over, NOOP, action[:, 0]).astype(np.int32)
        picture, score, terminated, truncated, _ = self._engine.step(index)
        picture = picture[:, 0]
        late = self._late.any(0)
        if late.any():
            picture = np.where(late[:, None, None, None], self._shown, picture)
        ends = np.stack([terminated, truncated & ~terminated])
        ended = np.where(self._over, False, ends | self._late)
        self._late = ends & self._over
        score = np.where(self._over | late, 0, score).astype(np.float32)
        self._over = ended.any(0)
        self._shown = picture
        reward = np.sign(score) if self._training else score.copy()
        return Step(picture, reward, ended[0], ended[1], score)

    def close(self) -> None:
        """Stop the threads."""
        self._engine.close()
