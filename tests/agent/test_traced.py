"""A program that another process traced is the one that this process would have."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from scalezero.agent import traced
from scalezero.agent.act import act
from scalezero.agent.learner import learner, update_many
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.traced import traced_once

NUMBERS, ROWS = jnp.arange(4), 2
CONFIG = small.config()


class Folder(dict):
    """A cache in memory."""

    put = dict.__setitem__


class Pair(eqx.Module):
    """A small model: arrays, and something beside them."""

    left: jax.Array
    right: jax.Array
    name: str = eqx.field(static=True)


@pytest.fixture
def shelf(monkeypatch):
    """Where programs are kept; between two processes is `jax.clear_caches`."""
    monkeypatch.setattr(traced, "shelf", traced.Shelf(Folder(), lambda: "here"))
    return traced.shelf


def turned(calls: list, by: object = 2.0, *, changed=None):
    """A fresh process's function, which tells in `calls` when it is traced."""

    @eqx.filter_jit
    @traced_once(like=lambda pair, by, *, key: pair)
    def turn(pair: Pair, by: object, *, key: jax.Array):
        calls.append(by)
        factor = by if isinstance(by, float) else 3.0
        noise = jax.random.normal(key, pair.left.shape, pair.left.dtype)
        return Pair(pair.right + noise, factor * pair.left, pair.name), {"sum": [pair.left.sum()]}

    return functools.partial(turn, by=by, key=jax.random.key(1))


def pair(size: int = 3, name: str = "a", dtype=jnp.float32) -> Pair:
    return Pair(jnp.arange(size, dtype=dtype), jnp.ones(size, dtype), name)


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_program_is_traced_by_the_first_process_alone(shelf, monkeypatch):
    calls = []
    first = turned(calls)(pair())
    jax.clear_caches()
    second = turned(calls)(pair())
    assert calls == [2.0]
    assert len(shelf.cache) == 1
    monkeypatch.setattr(traced, "shelf", None)
    same(first, turned([])(pair()))
    same(second, first)


def test_without_a_shelf_every_process_traces():
    calls = []
    for _ in range(2):
        turned(calls)(pair())
    assert calls == [2.0, 2.0]


@pytest.mark.parametrize(
    ("given", "by"),
    [(pair(4), 2.0), (pair(name="b"), 2.0), (pair(dtype=jnp.bfloat16), 2.0), (pair(), 4.0)],
    ids=["shape", "name", "type", "setting"],
)
def test_whatever_is_given_tells_programs_apart(shelf, given, by):
    calls = []
    turned(calls)(pair())
    made, said = turned(calls, by)(given)
    assert len(calls) == len(shelf.cache) == 2
    np.testing.assert_array_equal(made.right, by * given.left)
    np.testing.assert_array_equal(said["sum"][0], given.left.sum())


@pytest.mark.parametrize(("about", "programs"), [(None, 1), ("elsewhere", 2)])
def test_what_surrounds_a_program_tells_it_apart_or_that_none_is_kept(
    shelf, monkeypatch, about, programs
):
    calls = []
    turned(calls)(pair())
    monkeypatch.setattr(traced, "shelf", traced.Shelf(shelf.cache, lambda: about))
    turned(calls)(pair())
    assert len(calls) == 2
    assert len(shelf.cache) == programs


@pytest.mark.parametrize(
    ("given", "other"), [(jnp.ones(()), lambda: None), (1.0, None)], ids=["function", "weak type"]
)
def test_what_does_not_tell_all_of_itself_is_traced_every_time(shelf, given, other):
    through = traced_once(like=lambda x, other: x)(lambda x, other: (2 * x, {}))
    made, _ = jax.jit(lambda x: through(x, other))(given)
    assert made == 2
    assert not shelf.cache


def test_what_cannot_be_written_down_is_traced_every_time(shelf, capfd):
    def told(x):
        jax.debug.print("told {}", x)
        return x + 1, {}

    through = traced_once(like=lambda x: x)(told)
    for _ in range(2):
        made, _ = jax.jit(lambda x: through(x))(jnp.ones(()))
        assert made == 2
    jax.effects_barrier()
    assert capfd.readouterr().out.count("told 1.0") == 2
    assert not shelf.cache


def test_a_disk_that_takes_nothing_is_warned_of(monkeypatch):
    class Full(Folder):
        def put(self, key, value):
            raise OSError("no space left")

    monkeypatch.setattr(traced, "shelf", traced.Shelf(Full(), lambda: "here"))
    with pytest.warns(UserWarning, match="cannot be kept for the next start: no space left"):
        made, _ = turned([])(pair())
    np.testing.assert_array_equal(made.right, 2.0 * jnp.arange(3.0))


def test_a_function_gives_what_it_is_said_to_be_like(shelf):
    through = traced_once(like=lambda x: (x, x))(lambda x: (x, {}))
    with pytest.raises(TypeError, match="does not give what it is like"):
        jax.jit(through)(jnp.ones(2))


@pytest.mark.parametrize("spoil", [lambda whole: whole[:-9], lambda whole: b"", lambda _: b"x" * 9])
def test_a_program_that_was_spoilt_is_traced_again(shelf, spoil):
    calls = []
    turned(calls)(pair())
    ((name, whole),) = shelf.cache.items()
    shelf.cache[name] = spoil(whole)
    turned(calls)(pair())
    turned(calls)(pair())
    assert len(calls) == 2
    assert shelf.cache[name] == whole


def test_results_go_where_they_would_have_gone(shelf):
    """Committed to a device, whatever takes them would be compiled once more."""
    made, said = turned([])(pair())
    assert not any(each.committed for each in jax.tree.leaves((made, said)))


@pytest.mark.slow
def test_a_search_and_updates_are_bit_for_bit_those_that_were_traced(shelf, monkeypatch):
    world = small.small_world(key=jax.random.key(0))
    rng = np.random.default_rng(0)
    observation = small.observation(rng, ROWS, vector_slots=3, image_slots=1, size=4)
    history = small.history(rng, world, (0, 1, 2, 3), ROWS)
    first, explore = jnp.zeros((4, ROWS), bool), jnp.ones(())
    seen = (NUMBERS, history, observation, small.LIBRARY, first, CONFIG.search, explore)
    rule = Optimiser(CONFIG.learn, 10)
    batch = small.batch(rng, world, (0, 1, 2, 3))
    batches = jax.tree.map(lambda x: jnp.stack([x, x]), batch)

    def both():
        jax.clear_caches()
        told = batches, jnp.stack([NUMBERS, NUMBERS]), small.LIBRARY, CONFIG.learn, rule
        old = learner(world, rule)
        places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(old.target)]
        state, metrics = update_many(old, *told)
        # The memory of what was given still goes to what comes back.
        assert [each.unsafe_buffer_pointer() for each in jax.tree.leaves(state.target)] == places
        decided = act(world, *seen, key=jax.random.key(5))
        return decided, eqx.filter(state, eqx.is_array), metrics

    first = both()
    assert len(shelf.cache) == 2
    monkeypatch.setattr(Folder, "put", None)  # so the second process must find both
    second = both()
    monkeypatch.setattr(traced, "shelf", None)
    same(first, both())
    same(second, first)
