"""A counting stream: every row says which lane, episode and time it is from."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from scalezero.data.replay import Replay, Window
from scalezero.envs.spec import Continuous, Discrete, Image, Listed, Task, Text, Vector

GAP = 1000  # a lane's clock jumps by this when it is cut, so no row beyond can seem to follow


def task(
    name: str = "toy/count",
    observation: Image | Vector | Text = Vector(3),  # noqa: B008
    action: Discrete | Continuous | Listed = Continuous(2),  # noqa: B008
) -> Task:
    return Task(
        name=name,
        observation=observation,
        action=action,
        action_repeat=1,
        max_decisions=100,
        floor=0.0,
        ceiling=1.0,
        target=1.0,
        source="none",
    )


def small(segments: int = 8, segment: int = 3, candidates: int = 2, **kind) -> Replay:
    """A replay of exactly `segments` segments."""
    return Replay(task(**kind), candidates, 1 << 24, segments * segment, segment)


@dataclass
class Stream:
    """Writes counting rows into a replay."""

    replay: Replay
    time: dict[int, int] = field(default_factory=dict)
    episode: dict[int, int] = field(default_factory=dict)

    def append(self, lanes: list[int], endings: list[int] | None = None) -> None:
        replay, lane = self.replay, np.array(lanes, int)
        ending = np.array(endings or [0] * len(lanes), np.uint8)
        t = np.array([self.time.get(i, 0) for i in lanes], np.float32)
        episode = np.array([self.episode.get(i, 0) for i in lanes], np.float32)
        shape = replay.task.observation.shape
        if isinstance(replay.task.observation, Image):
            seen = np.broadcast_to(
                (t % 256).astype(np.uint8)[:, None, None, None], (len(t), *shape)
            )
        else:
            seen = np.zeros((len(t), *shape), np.float32)
            seen[:, :3] = np.stack([lane, episode, t], 1)
        width, count = replay.task.action.width, replay.candidates
        candidates = t[:, None, None] + np.arange(count * width).reshape(1, count, width) / 8
        replay.append(
            lane=lane,
            observation=seen,
            action=np.repeat(t[:, None] + 0.25, width, 1),
            policy=t[:, None] + np.arange(count) / 4,
            candidates=candidates,
            value=t + 0.5,
            reward=t,
            ending=ending,
        )
        for i, end in zip(lanes, ending, strict=True):
            self.time[i] = self.time.get(i, 0) + 1
            self.episode[i] = self.episode.get(i, 0) + bool(end)

    def cut(self, lanes: list[int]) -> None:
        self.replay.cut(np.array(lanes, int))
        for i in lanes:
            self.time[i] = self.time.get(i, 0) + GAP
            self.episode[i] = self.episode.get(i, 0) + 1


class Every(np.random.Generator):
    """Draws each possible start exactly once, in place of at random."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, high, size):
        assert high == size
        return np.arange(high)


def every(replay: Replay, time: int, lookahead: int) -> Window:
    """All windows that can be sampled."""
    return replay.sample(replay.starts, time, lookahead, 0.0, Every())


@dataclass(frozen=True)
class Counting:
    """What the tests of this folder share."""

    task = staticmethod(task)
    small = staticmethod(small)
    stream = Stream
    every = staticmethod(every)


@pytest.fixture(scope="session")
def counting() -> type[Counting]:
    return Counting
