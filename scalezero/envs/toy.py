"""What are the smallest worlds worth learning? Toys for tests, tutorials and the quickstart.

All are vectorised NumPy with one random stream. Each keeps for every environment its `time`
within the episode, and whether the episode is `over`, so that the next step restarts it.
"""

import numpy as np

from scalezero.envs.spec import (
    Page,
    Step,
    Task,
    TaskError,
    Vector,
    VectorEnv,
    seeds,
)

CELLS = 8  # Catch: the picture is CELLS × CELLS squares …
PIXELS = 8  # … of PIXELS × PIXELS
BALLS = 5  # balls in an episode
FALL = CELLS - 1  # decisions a ball takes to reach the paddle's row
PADDLE = 2  # cells the paddle is wide
ROOMS = 8  # of the corridor
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
WAYS = ("east", "north", "south", "west")
NIGHT, BALL, WOOD, TALLY = (18, 22, 48), (255, 196, 0), (90, 200, 250), (235, 90, 120)


def make(task: Task, envs: int, *, seed: int) -> VectorEnv:
    """Environments of the toy called `task`."""
    if task.action_repeat != 1:
        raise TaskError(f"{task.name}: action_repeat = {task.action_repeat}, but toys take 1")
    match task.name:
        case "toy/catch":
            return Catch(task, envs, seed)
        case "toy/chain":
            return Chain(task, envs)
        case "toy/corridor":
            return Corridor(task, envs, seed)
        case "toy/count":
            return Count(task, envs)
        case "toy/target":
            return Target(task, envs, seed)
    raise TaskError(f"{task.name}: no such toy; choose catch, chain, corridor, count or target")


def _step(
    observation: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
) -> Step:
    reward = reward.astype(np.float32)
    return Step(observation, reward, terminated, truncated & ~terminated, reward.copy())


class Catch:
    """Balls fall one at a time; a paddle that moves one cell a decision should be under them.

    +1 for a ball caught, -1 for one missed; the game is over after the last. The marks along the
    top edge count the balls still to come, so one picture says all there is to know.
    """

    def __init__(self, task: Task, envs: int, seed: int) -> None:
        """Nothing happens before `reset`."""
        self.envs = envs
        self._limit = task.max_decisions
        self._seed = int(seeds(seed, 1)[0])  # not `seed`: who acts may draw from that

    def reset(self) -> np.ndarray:
        """The first pictures."""
        self._random = np.random.default_rng(self._seed)
        self._time = np.zeros(self.envs, int)
        self._paddle = self._random.integers(CELLS - PADDLE + 1, size=self.envs)
        self._ball = self._random.integers(CELLS, size=self.envs)
        self._over = np.zeros(self.envs, bool)
        return self._picture()

    def step(self, action: np.ndarray) -> Step:
        """Move left (0), stay (1) or move right (2)."""
        start = self._random.integers(CELLS - PADDLE + 1, size=self.envs)
        moved = np.clip(self._paddle + action[:, 0].astype(int) - 1, 0, CELLS - PADDLE)
        self._paddle = np.where(self._over, start, moved)
        self._time = np.where(self._over, 0, self._time + 1)
        landed = ~self._over & (self._time % FALL == 0)
        caught = (self._paddle <= self._ball) & (self._ball < self._paddle + PADDLE)
        reward = np.where(landed, np.where(caught, 1, -1), 0)
        terminated = landed & (self._time == BALLS * FALL)
        truncated = ~self._over & (self._time == self._limit)
        ball = self._random.integers(CELLS, size=self.envs)
        self._ball = np.where((landed & ~terminated) | self._over, ball, self._ball)
        self._over = terminated | truncated
        return _step(self._picture(), reward, terminated, truncated)

    def _picture(self) -> np.ndarray:
        env = np.arange(self.envs)
        cells = np.empty((self.envs, CELLS, CELLS, 3), np.uint8)
        cells[:] = NIGHT
        for part in range(PADDLE):
            cells[env, CELLS - 1, self._paddle + part] = WOOD
        done = self._time == BALLS * FALL  # the last ball lies where it landed
        cells[env, np.where(done, FALL, self._time % FALL), self._ball] = BALL
        picture = cells.repeat(PIXELS, 1).repeat(PIXELS, 2)
        for mark in range(1, BALLS):
            picture[self._time < mark * FALL, 1:3, 4 * mark - 2 : 4 * mark] = TALLY
        return picture

    def close(self) -> None:
        """Nothing to give back."""


class Chain:
    """A walk on a line of cells, shown one-hot: the last one pays 1 and ends the episode."""

    def __init__(self, task: Task, envs: int) -> None:
        """Nothing happens before `reset`."""
        assert isinstance(task.observation, Vector)
        self.envs = envs
        self._limit = task.max_decisions
        self._shown = np.eye(task.observation.size, dtype=np.float32)

    def reset(self) -> np.ndarray:
        """Every walker in the first cell."""
        self._time = np.zeros(self.envs, int)
        self._cell = np.zeros(self.envs, int)
        self._over = np.zeros(self.envs, bool)
        return self._shown[self._cell]

    def step(self, action: np.ndarray) -> Step:
        """Walk left (0) or right (1)."""
        last = len(self._shown) - 1
        walked = np.clip(self._cell + 2 * action[:, 0].astype(int) - 1, 0, last)
        self._cell = np.where(self._over, 0, walked)
        self._time = np.where(self._over, 0, self._time + 1)
        terminated = self._cell == last
        truncated = self._time == self._limit
        self._over = terminated | truncated
        return _step(self._shown[self._cell], terminated, terminated, truncated)

    def close(self) -> None:
        """Nothing to give back."""


class Corridor:
    """Rooms whose text says where the exit is; 1 for the right way, and the first wrong one ends.

    A page lists two to four ways in alphabetical order, so the index of the right one says
    nothing: who does not read passes a room with chance 1/2, 1/3 or 1/4.
    """

    def __init__(self, task: Task, envs: int, seed: int) -> None:
        """Nothing happens before `reset`."""
        self.envs = envs
        self._limit = task.max_decisions
        self._seed = int(seeds(seed, 1)[0])

    def reset(self) -> np.ndarray:
        """The first rooms."""
        self._random = np.random.default_rng(self._seed)
        self._time = np.zeros(self.envs, int)
        self._over = np.zeros(self.envs, bool)
        self._exits, self._pages = self._rooms()
        return self._pages

    def step(self, action: np.ndarray) -> Step:
        """Leave by one of the ways listed."""
        way = action[:, 0].astype(int)
        right = np.array(
            [p.actions.index(e) for p, e in zip(self._pages, self._exits, strict=True)]
        )
        passed = ~self._over & (way == right)
        failed = ~self._over & (way != right)
        self._time = np.where(self._over, 0, self._time + 1)
        terminated = failed | (passed & (self._time == ROOMS))
        truncated = passed & (self._time == self._limit)
        self._exits, pages = self._rooms()
        pages[terminated & passed] = Page("You are outside, and free.", ("wait",))
        pages[failed] = Page("You walk into a trap.", ("wait",))
        self._exits[terminated] = "wait"
        self._pages = pages
        self._over = terminated | truncated
        return _step(pages, passed, terminated, truncated)

    def _rooms(self) -> tuple[np.ndarray, np.ndarray]:
        """The next room of every environment: its exit as an action, and its page."""
        exits, pages = np.empty(self.envs, object), np.empty(self.envs, object)
        for env in range(self.envs):
            doors = sorted(self._random.choice(WAYS, self._random.integers(2, 5), replace=False))
            colour, way = self._random.choice(COLOURS), self._random.choice(doors)
            exits[env] = f"go {way}"
            text = f"You are in the {colour} room. The exit is {way}."
            pages[env] = Page(text, tuple(f"go {door}" for door in doors))
        return exits, pages

    def close(self) -> None:
        """Nothing to give back."""


class Count:
    """Counts, for tests of alignment: every observation and reward says where it belongs.

    The observation is (environment, episode, time, last action), the action -1 at the start of an
    episode. The reward is 10 · time + action, with the time the action was taken at. Where
    environment + episode is even, an episode terminates after `options["terminated"]` decisions;
    where it is odd, it is truncated after `max_decisions`.
    """

    def __init__(self, task: Task, envs: int) -> None:
        """Nothing happens before `reset`."""
        self.envs = envs
        self._limit = task.max_decisions
        self._length = int(task.options.get("terminated", 5))

    def reset(self) -> np.ndarray:
        """Time 0 of episode 0."""
        self._time = np.zeros(self.envs, int)
        self._episode = np.zeros(self.envs, int)
        self._over = np.zeros(self.envs, bool)
        return self._shown(np.full(self.envs, -1))

    def _shown(self, action: np.ndarray) -> np.ndarray:
        columns = (np.arange(self.envs), self._episode, self._time, action)
        return np.stack(columns, axis=1).astype(np.float32)

    def step(self, action: np.ndarray) -> Step:
        """Count on."""
        action = np.where(self._over, -1, action[:, 0].astype(int))
        reward = np.where(self._over, 0, 10 * self._time + action)
        self._episode = self._episode + self._over
        self._time = np.where(self._over, 0, self._time + 1)
        even = (np.arange(self.envs) + self._episode) % 2 == 0
        terminated = even & (self._time == self._length)
        truncated = self._time == self._limit
        self._over = terminated | truncated
        return _step(self._shown(action), reward, terminated, truncated)

    def close(self) -> None:
        """Nothing to give back."""


class Target:
    """Point at what is seen: the observation is a point of the action space, redrawn each time.

    The reward is 1 less the mean distance along the axes, so from -1 to 1.
    """

    def __init__(self, task: Task, envs: int, seed: int) -> None:
        """Nothing happens before `reset`."""
        self.envs = envs
        self._limit = task.max_decisions
        self._shape = (envs, *task.observation.shape)
        self._seed = int(seeds(seed, 1)[0])

    def reset(self) -> np.ndarray:
        """The first points."""
        self._random = np.random.default_rng(self._seed)
        self._time = np.zeros(self.envs, int)
        self._over = np.zeros(self.envs, bool)
        return self._draw()

    def _draw(self) -> np.ndarray:
        self._point = self._random.uniform(-1, 1, self._shape).astype(np.float32)
        return self._point.copy()

    def step(self, action: np.ndarray) -> Step:
        """Point."""
        closeness = 1 - np.abs(np.clip(action, -1, 1) - self._point).mean(axis=1)
        reward = np.where(self._over, 0, closeness)
        self._time = np.where(self._over, 0, self._time + 1)
        truncated = self._time == self._limit
        self._over = truncated
        return _step(self._draw(), reward, np.zeros(self.envs, bool), truncated)

    def close(self) -> None:
        """Nothing to give back."""
