"""How do games that hang or die become an environment? Each plays in a process of its own.

Text games run in C, where a crash would take the trainer with it and a hang would stop it. A
worker that dies, raises or takes too long is replaced; its episode is shown as truncated, with
reward 0 at the last known page, and counted in `dropped`.

The processes are started afresh (not forked: the parent runs JAX's threads) and import only the
game. They end when the parent does.
"""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from scalezero.envs.spec import Page, Step, SuiteMissing, Task, TaskError

START_SECONDS = 300.0  # for importing a suite and opening a game, on a busy machine
STEP_SECONDS = 180.0  # for one decision or restart; 6 for Jericho's slowest on a core of its own
FAILURES = 5  # episodes of one environment that may fail in a row
PROGRAM = (
    "import sys; handle, parent, *sys.path = sys.argv[1:]; "
    "from scalezero.envs.workers import serve; serve(int(handle), int(parent))"
)


@dataclass(frozen=True)
class Shown:
    """What a game says after one command."""

    page: Page
    reward: float = 0.0
    over: bool = False  # the game ended by itself
    counts: dict[str, int] = field(default_factory=dict)  # what happened; summed up by `Workers`


class Game(Protocol):
    """One game in one process; every episode of it begins alike."""

    def reset(self) -> Shown:
        """Start afresh."""
        ...

    def step(self, command: str) -> Shown:
        """Give one command."""
        ...


def require(task: Task, packages: Iterable[str], suite: str) -> None:
    """Raise unless the packages of a suite of games are there, and `task` is as they take it."""
    for package in packages:
        if find_spec(package) is None:
            raise SuiteMissing(
                f"{task.name}: the package {package} is missing; install it with "
                f"`pip install 'scalezero[{suite}]'`, which needs a C compiler (gcc)"
            )
    if task.action_repeat != 1:
        raise TaskError(f"{task.name}: action_repeat = {task.action_repeat}, but games take 1")


class WorkerFailed(RuntimeError):
    """A worker that died, raised or took too long; the message says which."""


class Workers:
    """Environments of one task, in as many processes."""

    def __init__(
        self,
        task: Task,
        envs: int,
        start: Callable[..., Game],
        *arguments: Any,
        start_seconds: float = START_SECONDS,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        """Start every process, and wait until its game is open.

        Args:
            task: Named in messages; its time limit ends episodes.
            envs: How many processes.
            start: Opens the game in a worker, called with `arguments`; both are pickled. A
                `TaskError` that it raises is raised here.
            start_seconds: How long `start` may take.
            step_seconds: How long a command or a restart may take.
        """
        self.envs = envs
        self.dropped = np.zeros(envs, int)  # episodes lost because a worker failed
        self.counts: Counter[str] = Counter()  # what the games counted
        self._task = task
        self._failures = np.zeros(envs, int)  # in a row
        self._workers: list[Worker] = []
        try:
            for _ in range(envs):
                self._workers.append(Worker(start, arguments, start_seconds, step_seconds))
            for worker in self._workers:
                worker.open()
        except WorkerFailed as error:
            self.close()
            raise RuntimeError(f"{task.name}: cannot be opened, because {error}") from error
        except BaseException:
            self.close()
            raise

    def reset(self) -> np.ndarray:
        """The first pages."""
        for worker in self._workers:
            worker.send(None)
        self._time = np.zeros(self.envs, int)
        self._over = np.zeros(self.envs, bool)
        self._pages = _pages([self._begin(env) for env in range(self.envs)])
        return self._pages

    def step(self, action: np.ndarray) -> Step:
        """Give every game its command; where an episode has just ended, restart."""
        index = action[:, 0].astype(int).tolist()
        commands = [None if o else self._command(e, index[e]) for e, o in enumerate(self._over)]
        for worker, command in zip(self._workers, commands, strict=True):
            worker.send(command)
        pages: list[Page] = []
        reward = np.zeros(self.envs, np.float32)
        terminated, failed = np.zeros(self.envs, bool), np.zeros(self.envs, bool)
        for env, worker in enumerate(self._workers):
            if self._over[env]:
                pages.append(self._begin(env))
                continue
            try:
                shown = worker.receive()
            except WorkerFailed as error:
                failed[env] = True
                self.dropped[env] += 1
                self._replace(env, error)
                pages.append(self._pages[env])
                continue
            self.counts.update(shown.counts)
            pages.append(shown.page)
            reward[env], terminated[env] = shown.reward, shown.over
        self._time = np.where(self._over, 0, self._time + 1)
        late = ~self._over & ~terminated & (self._time >= self._task.max_decisions)
        self._failures[terminated | (late & ~failed)] = 0
        truncated = late | failed
        self._over = terminated | truncated
        self._pages = _pages(pages)
        return Step(self._pages, reward, terminated, truncated, reward.copy())

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()

    def _command(self, env: int, index: int) -> str:
        actions = self._pages[env].actions
        if not 0 <= index < len(actions):
            raise ValueError(
                f"{self._task.name}: action {index} is not on a page that lists {len(actions)}"
            )
        return actions[index]

    def _begin(self, env: int) -> Page:
        """The first page of an episode whose start was sent, from a new worker if need be."""
        worker = self._workers[env]
        while True:
            try:
                shown = worker.receive()
            except WorkerFailed as error:
                self._replace(env, error)
                worker.send(None)
                continue
            self.counts.update(shown.counts)
            return shown.page

    def _replace(self, env: int, error: WorkerFailed) -> None:
        self._failures[env] += 1
        if self._failures[env] >= FAILURES:
            raise RuntimeError(
                f"{self._task.name}: environment {env} failed {FAILURES} times in a row, "
                f"the last time because {error}"
            ) from error
        self._workers[env].start()


class Worker:
    """One process with one game, and the pipe to it."""

    def __init__(
        self,
        opener: Callable[..., Game],
        arguments: tuple[Any, ...],
        start_seconds: float,
        step_seconds: float,
    ) -> None:
        """Start the process, and wait for nothing yet."""
        self._opening = (opener, arguments)
        self._start_seconds, self._step_seconds = start_seconds, step_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start a new process in the place of the old one."""
        self.end()
        self._pipe, theirs = Pipe()
        handle = str(theirs.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, handle, str(os.getpid()), *sys.path],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent, which closes its workers
        )
        theirs.close()
        self._is_open = False
        self._deadline = time.monotonic() + self._start_seconds
        self.send(self._opening)

    def send(self, message: Any) -> None:
        """Send a command, or None to restart; that nobody listens shows at `receive`."""
        if self._is_open:
            self._deadline = time.monotonic() + self._step_seconds
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(message)

    def open(self) -> None:
        """Wait until the game is open."""
        if not self._is_open:
            self._answer()
            self._is_open = True
            self._deadline = time.monotonic() + self._step_seconds

    def receive(self) -> Shown:
        """Wait for what the game says to what was sent last."""
        self.open()
        return self._answer()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answer(self) -> Any:
        assert self._process is not None
        try:
            if not self._pipe.poll(max(0.0, self._deadline - time.monotonic())):
                raise WorkerFailed("it took too long")
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerFailed(f"its process died with exit code {self._code()}") from error
        match answer:
            case TaskError():
                raise answer
            case str():
                raise WorkerFailed(f"it raised {answer}")
        return answer

    def _code(self) -> int:
        """How the process ended that has hung up; it is made to, should it live on."""
        assert self._process is not None
        try:
            return self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def serve(handle: int, parent: int) -> None:
    """Play in this process, until the parent hangs up or dies."""
    threading.Thread(target=_outlive_nobody, args=(parent,), daemon=True).start()
    pipe = Connection(handle)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            opener, arguments = pipe.recv()
            game: Game = opener(*arguments)
            pipe.send(None)
            while True:
                command = pipe.recv()
                pipe.send(game.reset() if command is None else game.step(command))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except TaskError as error:
            pipe.send(error)
        except Exception as error:  # whatever goes wrong is told to the parent
            pipe.send(f"{type(error).__name__}: {error}")


def _outlive_nobody(parent: int) -> None:
    """End this process when its parent has died, even if a game hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _pages(pages: list[Page]) -> np.ndarray:
    """Pages as an array of objects."""
    array = np.empty(len(pages), object)
    array[:] = pages
    return array
