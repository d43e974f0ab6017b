"""What does an agent see and weigh while it plays a game of text? A transcript to read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape

from scalezero.agent.act import act, empty_history
from scalezero.agent.ready import ready
from scalezero.agent.world import World
from scalezero.envs.pool import Pool, Steps
from scalezero.envs.spec import GOES_ON, TERMINATED, Text
from scalezero.run.agent import Agent, load
from scalezero.run.collect import ending_of, observation_of
from scalezero.run.folder import RunError


@dataclass(frozen=True)
class Moment:
    """One decision: what was shown, what was weighed, what was done, and what came of it."""

    text: str
    value: float  # the search's estimate of what is still to come, on the learner's scale
    actions: tuple[tuple[str, float], ...]  # with the search's probability, the best first
    taken: str
    reward: float
    score: float  # so far
    ending: int  # GOES_ON, TERMINATED or TRUNCATED
    last: str  # what was shown at the end; empty while the game goes on


def play(run: Path, task: str, *, episodes: int = 1, seed: int = 0) -> Iterator[Moment]:
    """The decisions of whole episodes, without exploration, one by one as they are made.

    Args:
        run: A run directory.
        task: One of its tasks that shows text.
        episodes: How many to play.
        seed: Of the environments.

    Raises:
        RunError: There is no agent in `run`, or it has no such task with text.
    """
    agent = load(run)
    told = [each.name for each in agent.tasks if isinstance(each.observation, Text)]
    if task not in told:
        played = ", ".join(told) or "none"
        raise RunError(f"{run}: {task} is not one of its tasks that show text; these are: {played}")
    number = [each.name for each in agent.tasks].index(task)
    world = ready(agent.world)
    pool = Pool([agent.tasks[number]], 1, seed=seed, training=False, read=agent.texts.read)
    try:
        for episode in range(episodes):
            yield from _episode(agent, world, pool, number, jax.random.key(seed + episode))
    finally:
        pool.close()


def _episode(
    agent: Agent, world: World, pool: Pool, number: int, key: jax.Array
) -> Iterator[Moment]:
    config = agent.config
    history = empty_history(world, 1, 1, config.search.context)
    steps, first, score, turn = pool.reset(), True, 0.0, 0
    while True:
        action, plan, history = act(
            world,
            jnp.array([number]),
            history,
            observation_of(steps, world.tasks),
            agent.texts.contents(),
            jnp.full((1, 1), first),
            config.search,
            jnp.zeros(()),
            key=jax.random.fold_in(key, turn),
        )
        text, *listed = _words(agent, steps)
        policy = np.asarray(plan.policy)[0, 0, : len(listed)]
        ranked = tuple((listed[i], float(policy[i])) for i in np.argsort(-policy, kind="stable"))
        pool.send(np.asarray(action))
        steps, first, turn = pool.recv(), False, turn + 1
        score += float(steps.score[0, 0])
        ending = int(ending_of(steps)[0, 0])
        yield Moment(
            text=text,
            value=float(plan.value[0, 0]),
            actions=ranked,
            taken=listed[int(action[0, 0, 0])],
            reward=float(steps.score[0, 0]),
            score=score,
            ending=ending,
            last=_words(agent, steps)[0] if ending != GOES_ON else "",
        )
        if ending != GOES_ON:
            return


def _words(agent: Agent, steps: Steps) -> list[str]:
    """The text that is shown, and the actions listed with it."""
    book = agent.texts.book
    return [] if book is None else [book.texts[n] for n in steps.text[0, 0] if n >= 0]


def show(moment: Moment, most: int, console: Console) -> None:
    """Print one decision: the page, the best `most` actions, and what came of the one taken."""
    console.print(f"\n{escape(moment.text)}", highlight=False)
    weighed = "  ".join(f"{escape(name)} {share:.0%}" for name, share in moment.actions[:most])
    console.print(f"[dim]value {moment.value:.2f}   {weighed}[/dim]", highlight=False)
    reward = f"   [green]{moment.reward:+g}[/green]" if moment.reward else ""
    console.print(f"[bold]> {escape(moment.taken)}[/bold]{reward}", highlight=False)
    if moment.ending != GOES_ON:
        how = "the game is over" if moment.ending == TERMINATED else "the time limit is reached"
        console.print(f"\n{escape(moment.last)}\n\n{how}; score {moment.score:g}", highlight=False)
