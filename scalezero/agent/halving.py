"""Sequential halving: which actions of a root are tried in which order, and how many at once.

A search of n simulations goes in rounds. In a round each action still in the race is tried once
more, and who races is settled when the round begins; so its simulations know nothing of each other,
each has a part of the tree to itself, and they may be made one by one or all at once. `cheapest`
says how many at once.

Source: Gumbel MuZero (openreview.net/forum?id=bERaNdoegnO), Section 3.4, Algorithm 2. Differs from
mctx, which scores the remaining actions anew for every simulation of a round.
"""

from collections.abc import Iterable
from itertools import chain, combinations_with_replacement, groupby, repeat, zip_longest
from math import ceil, log2
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

WORTH = 0.05  # of a search, about, that a stretch must save; each compiles the model once more


def rounds(entrants: int, simulations: int) -> list[tuple[int, int]]:
    """Each round's visits that its actions already have, and how many actions it tries.

    There are log₂ m phases. Each gives the actions still in the race equally many visits, at least
    one, and then halves their number; two race until the simulations are spent.
    """
    if entrants < 2:
        return [(visits, 1) for visits in range(simulations * entrants)]
    phases, racing, left, made = ceil(log2(entrants)), entrants, simulations, []
    while left:
        for _ in range(max(1, simulations // (phases * racing))):
            width = min(racing, left)
            left -= width
            made += [(len(made), width)] if width else []
        racing = max(2, racing // 2)
    return made


class Stretch(NamedTuple):
    """Passes through the model, one after another, that have equally many lanes for each row."""

    lanes: int
    passes: int


def stretches(
    entrants: Iterable[int], simulations: int, least: int, most: int
) -> tuple[Stretch, ...]:
    """The passes of a search with as many lanes as the fullest round needs, in these bounds.

    Args:
        entrants: How many actions enter in one row or another. Rows with a single one, in which
            nothing is to be decided, go only as far as the passes of the others take them.
        simulations: Of a whole search.
        least: Lanes of a row.
        most: Lanes of a row. A round that tries more takes several passes.
    """
    races = {count for count in entrants if count > 1} or {1}
    needed = (
        chain.from_iterable(
            repeat(min(tried, most), ceil(tried / most)) for _, tried in rounds(count, simulations)
        )
        for count in races
    )
    lanes = (max(least, *each) for each in zip_longest(*needed, fillvalue=0))
    return tuple(Stretch(width, len(list(same))) for width, same in groupby(lanes))


def cheapest(
    entrants: Iterable[int], simulations: int, rows: int, overhead: int
) -> tuple[Stretch, ...]:
    """The stretches that cost a search of `rows` rows the least.

    Their bounds are tried among what the largest race is halved to.

    Args:
        entrants: As `stretches` takes them.
        simulations: Of a whole search.
        rows: Searched together.
        overhead: A pass costs as much as so many lanes of one row, whatever it holds.
    """
    races = tuple(entrants)
    most = max(races, default=1) or 1
    halves = [most >> times for times in reversed(range(most.bit_length()))]
    bounds = combinations_with_replacement(halves, 2)
    ways = (stretches(races, simulations, *each) for each in bounds)

    def cost(way: tuple[Stretch, ...]) -> float:
        spent = sum(each.passes * (overhead + rows * each.lanes) for each in way)
        return spent * (1 + WORTH * len(way))

    return min(ways, key=cost)


class Entry(eqx.Module):
    """The actions of each root that are to be tried next, all different."""

    choice: Int[Array, "row lane"]
    live: Bool[Array, "row lane"]  # other lanes have nothing to try


class Race(eqx.Module):
    """Where each row stands."""

    had: Int[Array, "row round"]  # visits of the actions that may race in a round
    tried: Int[Array, "row round"]  # how many of them do; 0: the race is over
    begun: Int[Array, " row"]  # rounds
    waiting: Bool[Array, "row candidate"]  # actions of this round that are still to be tried

    @property
    def over(self) -> Bool[Array, " row"]:
        """Whether a row has tried all it was to try."""
        return ~jnp.any(self.waiting, axis=-1) & (_at(self.tried, self.begun) == 0)

    def next_round(
        self,
        score: Float[Array, "row candidate"],
        exists: Bool[Array, "row candidate"],
        visits: Int[Array, "row candidate"],
    ) -> "Race":
        """The race after rows that wait for nothing have begun a round, with their best actions."""
        able = exists & (visits == _at(self.had, self.begun)[:, None])
        best = ranked(jnp.where(able, score, -jnp.inf)) < _at(self.tried, self.begun)[:, None]
        fresh = ~jnp.any(self.waiting, axis=-1)
        begun = jnp.where(fresh, self.begun + 1, self.begun)
        begun = jnp.minimum(begun, self.tried.shape[-1] - 1)
        waiting = jnp.where(fresh[:, None], able & best, self.waiting)
        return Race(self.had, self.tried, begun, waiting)

    def call(self, lanes: int) -> tuple[Entry, "Race"]:
        """The next actions that wait, at most `lanes` of each row."""
        turn = jnp.cumsum(self.waiting, axis=-1, dtype=jnp.int32)  # from 1
        turn = jnp.where(self.waiting, turn, 0)
        mine = turn[:, None, :] == (1 + jnp.arange(lanes))[None, :, None]
        waiting = self.waiting & (turn > lanes)
        entry = Entry(jnp.argmax(mine, axis=-1), jnp.any(mine, axis=-1))
        return entry, Race(self.had, self.tried, self.begun, waiting)


def race(exists: Bool[Array, "row candidate"], considered: int, simulations: int) -> Race:
    """The race before its first round, of at most `considered` of the actions that exist."""
    entrants = jnp.minimum(jnp.sum(exists, axis=-1, dtype=jnp.int32), considered)
    table = np.zeros((considered + 1, simulations + 1, 2), np.int32)
    for count, plan in enumerate(table):
        made = rounds(count, simulations)
        plan[: len(made)] = np.reshape(made, (-1, 2))
    had, tried = jnp.moveaxis(jnp.asarray(table)[entrants], -1, 0)
    return Race(had, tried, jnp.zeros_like(entrants), jnp.zeros_like(exists))


def _at(plan: Int[Array, "row round"], begun: Int[Array, " row"]) -> Int[Array, " row"]:
    return jnp.take_along_axis(plan, begun[:, None], axis=-1)[:, 0]


def ranked(score: Float[Array, "row candidate"]) -> Int[Array, "row candidate"]:
    """How many of its row each entry comes behind; the first of equals comes first."""
    place = jnp.arange(score.shape[-1])
    ahead = score[:, None, :] > score[:, :, None]
    first = (score[:, None, :] == score[:, :, None]) & (place[None, :] < place[:, None])[None]
    return jnp.sum(ahead | first, axis=-1, dtype=jnp.int32)
