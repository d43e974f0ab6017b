"""Pages of text, and actions that are listed on them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from scalezero.agent.act import act, empty_history
from scalezero.agent.learner import learner, update
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.policies import IMPOSSIBLE
from scalezero.config import ConfigError
from scalezero.envs.spec import NOTHING, Discrete, Listed, Text, Vector

OTHER = small.task("t/other", Text(3), Listed(2))
TASKS = (*small.WITH_TEXT, OTHER)
TOLD = 4  # the number of the first task with text
NUMBERS = jnp.arange(6)
ROWS = 2
TOKENS = jnp.asarray(np.random.default_rng(3).integers(1, 50, (small.TEXTS, 5)), jnp.int32)


def settings(**text):
    return small.config().model_copy(update={"text": small.config().text.model_copy(update=text)})


LISTED = settings()
INDEX = settings(actions="index")
SCRATCH = settings(encoder="scratch", scratch_width=8, scratch_layers=1, tokens=5, action_tokens=3)


@pytest.fixture(scope="module", params=[LISTED, INDEX], ids=["listed", "index"])
def world(request):
    return small.small_world(TASKS, settings=request.param, key=jax.random.key(0))


@pytest.fixture(scope="module")
def listed():
    return small.small_world(TASKS, settings=LISTED, key=jax.random.key(0))


def seen(seed: int = 0, text=None):
    """What six slots show; pages list two actions."""
    made = small.observation(
        np.random.default_rng(seed), ROWS, vector_slots=3, image_slots=1, text_slots=2, size=4
    )
    return made if text is None else eqx.tree_at(lambda o: o.text, made, text)


@eqx.filter_jit
def decide(world, observation, library, explore=0.0):
    """A plan for environments that have no past."""
    return act(
        world,
        NUMBERS,
        empty_history(world, 6, ROWS, 2),
        observation,
        library,
        jnp.ones((6, ROWS), bool),
        LISTED.search,
        jnp.asarray(explore),
        key=jax.random.key(1),
    )[1]


@eqx.filter_jit
def said(world, observation, library):
    """Logits and tokens of listed actions, and latents of pages."""
    bound = world.bind(NUMBERS, 3, library)
    latent, listing = bound.encode(observation), bound.listing(observation.text)
    first = jnp.zeros((6, ROWS, world.tasks.action_width))
    policy = bound.policy(latent, listing)
    return policy.logits[TOLD:], bound.action_token(first, listing)[TOLD:], latent[TOLD:]


def near(a, b):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=2e-5, rtol=1e-4), a, b)


def test_actions_that_are_not_listed_are_never_considered(world):
    for explore in (0.0, 1.0):
        plan = decide(world, seen(), small.LIBRARY, explore)
        assert np.all(np.isin(plan.action[TOLD:, :, 0], [0, 1]))
        np.testing.assert_allclose(plan.policy[TOLD:, :, :2].sum(-1), 1, rtol=1e-5)
        assert not np.any(plan.policy[TOLD:, :, 2:])
    logits, _, _ = said(world, seen(), small.LIBRARY)
    assert np.all(np.asarray(logits)[..., 2:] == IMPOSSIBLE)


def test_what_stands_for_no_text_cannot_matter(world):
    """Padding reads some row of the library: whatever stands there must not be seen."""
    text = np.asarray(seen().text)
    text = jnp.asarray(np.where(text == 0, 1, text))
    garbage = small.LIBRARY.at[0].set(1e3)
    near(decide(world, seen(text=text), garbage), decide(world, seen(text=text), small.LIBRARY))
    near(said(world, seen(text=text), garbage), said(world, seen(text=text), small.LIBRARY))


def test_listed_actions_are_what_they_say_wherever_they_stand(listed):
    text = seen().text
    swapped = text.at[..., 1].set(text[..., 2]).at[..., 2].set(text[..., 1])
    plain, other = (decide(listed, seen(text=t), small.LIBRARY) for t in (text, swapped))
    near(other.value, plain.value)
    near(other.policy[TOLD:, :, :2], plain.policy[TOLD:, :, 1::-1])
    _, token, _ = said(listed, seen(), small.LIBRARY)
    _, after, _ = said(listed, seen(text=swapped), small.LIBRARY)
    assert not np.allclose(token, after, atol=1e-3)


def test_the_same_words_are_the_same_action_in_every_task(listed):
    text = jnp.broadcast_to(jnp.asarray([1, 5, 6, NOTHING]), (2, ROWS, 4))
    _, token, _ = said(listed, seen(text=text), small.LIBRARY)
    near(token[0], token[1])


def test_actions_told_by_place_do_not_read_the_words():
    world = small.small_world(TASKS, settings=INDEX, key=jax.random.key(0))
    text = seen().text
    reworded = text.at[..., 1:3].set((text[..., 1:3] + 1) % small.TEXTS)
    near(said(world, seen(text=reworded), small.LIBRARY), said(world, seen(), small.LIBRARY))
    _, token, _ = said(world, seen(), small.LIBRARY)
    assert not np.allclose(token[0], token[1], atol=1e-3)  # each task has its own table


def test_pages_and_the_words_of_actions_matter(listed):
    plain = said(listed, seen(), small.LIBRARY)
    text = seen().text
    for column, parts in ((0, (0, 2)), (1, (0, 1))):
        other = text.at[..., column].set((text[..., column] + 1) % small.TEXTS)
        now = said(listed, seen(text=other), small.LIBRARY)
        for part in parts:
            assert not np.allclose(now[part][..., :2], plain[part][..., :2], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "library"), [(LISTED, small.LIBRARY), (SCRATCH, TOKENS)], ids=["frozen", "scratch"]
)
def test_all_that_reads_text_learns(config, library):
    world = small.small_world(TASKS, settings=config, key=jax.random.key(0))
    batch = small.batch(np.random.default_rng(1), world, tuple(range(6)))
    rule = Optimiser(config.learn, 10)
    step = eqx.filter_jit(lambda s, b: update(s, b, NUMBERS, library, config.learn, rule))
    state, metrics = step(learner(world, rule), batch)
    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    for part in ("reader", "text", "listed_tokens", "listed_keys"):
        old, new = (jax.tree.leaves(getattr(w, part)) for w in (world, state.world))
        assert not old or any(not np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    assert (world.reader is None) == (config is LISTED)


def test_the_words_behind_the_first_of_an_action_are_not_read():
    world = small.small_world(TASKS, settings=SCRATCH, key=jax.random.key(0))
    page = seen().text[..., :1]
    text = jnp.concatenate([jnp.zeros_like(page), seen().text[..., 1:]], axis=-1)
    spoiled = TOKENS.at[1:, 3:].set(49)  # number 0 is every page, and stays
    near(said(world, seen(text=text), spoiled), said(world, seen(text=text), TOKENS))


def test_text_and_listed_actions_come_together():
    for wrong in (
        small.task("t/wrong", Text(3), Discrete(3)),
        small.task("t/wrong", Vector(3), Listed(3)),
    ):
        with pytest.raises(ConfigError, match="come together"):
            small.table((wrong,))
