"""One decision for every environment: look, remember, plan; or at random."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from scalezero.agent.policies import PolicyShape, squash_action, uninformed
from scalezero.agent.ready import ready
from scalezero.agent.records import History, Listing, Observation, Plan
from scalezero.agent.search import plan
from scalezero.agent.tasks import TaskTable
from scalezero.agent.traced import traced_once
from scalezero.agent.world import World
from scalezero.config import SearchSettings


def empty_history(world: World, slots: int, rows: int, context: int) -> History:
    """No past at all, for `rows` environments in each of `slots`."""
    embed = world.choice_tokens.shape[-1]
    return History(
        latent=jnp.zeros((slots, rows, context, embed)),
        token=jnp.zeros((slots, rows, context, embed)),
        length=jnp.zeros((slots, rows), jnp.int32),
    )


def remember(
    history: History,
    latent: Float[Array, "slot row embed"],
    first: Bool[Array, "slot row"],
) -> History:
    """`history` with one more observation; where `first`, it is the only one."""
    context = history.latent.shape[2]
    shift = lambda past, new: jnp.concatenate([past[:, :, 1:], new[:, :, None]], axis=2)
    return History(
        latent=shift(history.latent, latent),
        token=shift(history.token, jnp.zeros_like(latent)),
        length=jnp.where(first, 1, jnp.minimum(history.length + 1, context)),
    )


@eqx.filter_jit(donate="none")
def act(
    world: World,
    task: Int[Array, " slot"],
    history: History,
    observation: Observation,
    library: Shaped[Array, "text content"],
    first: Bool[Array, "slot row"],
    settings: SearchSettings,
    explore: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "slot row action"], Plan, History]:
    """What to do now in every environment, the plan behind it, and the history to go on with.

    The actions are those the environments take: numbers, or entries in [-1, 1].

    Args:
        world: The agent.
        task: Whose environments each slot holds.
        history: What came before; entries of rows that are `first` are ignored.
        observation: What is seen now.
        library: What the numbers of texts stand for.
        first: Whether it is the first observation of an episode.
        settings: How to search.
        explore: 1 while collecting, 0 while evaluating; not a constant, so nothing recompiles.
        key: Consumed.
    """
    given = world, task, history, observation, library, first, settings, explore
    history, (action, planned) = _decided(*given, key=key)
    return action, Plan(**planned), history


@traced_once(like=lambda world, task, history, *_, key: history)
def _decided(
    world: World,
    task: Int[Array, " slot"],
    history: History,
    observation: Observation,
    library: Shaped[Array, "text content"],
    first: Bool[Array, "slot row"],
    settings: SearchSettings,
    explore: Float[Array, ""],
    *,
    key: PRNGKeyArray,
) -> tuple[History, tuple[Float[Array, "slot row action"], dict[str, Array]]]:
    bound = ready(world).bind(task, len(observation.vector), library)
    listing = bound.listing(observation.text)
    history = remember(history, bound.encode(observation), first)
    planned = plan(bound, history, listing, settings, explore, key=key)
    taken = history.token.at[:, :, -1].set(bound.action_token(planned.action, listing))
    history = History(history.latent, taken, history.length)
    return history, (squash_action(planned.action, bound.table.discrete), vars(planned))


@eqx.filter_jit(donate="none")
def act_at_random(
    tasks: TaskTable,
    shape: PolicyShape,
    task: Int[Array, " slot"],
    observation: Observation,
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "slot row action"], Plan]:
    """Any action at all: what to do before anything is learnt, when a plan would be noise.

    As the plan of `act` with a world of such `tasks` and `shape`, but all candidates are equally
    likely and the value is 0.
    """
    propose_key, choose_key = jax.random.split(key)
    table, rows = tasks.look_up(task), observation.text.shape[1]
    listing = Listing(observation.text[..., 1:] >= 0, None, None)
    anything = uninformed(rows, table, shape, listing)
    candidates, prior = anything.propose(jnp.ones(()), key=propose_key)
    choice = jax.random.categorical(choose_key, prior)
    action = jnp.take_along_axis(candidates, choice[..., None, None], axis=2)[:, :, 0]
    planned = Plan(action, candidates, jax.nn.softmax(prior), jnp.zeros(choice.shape))
    return squash_action(action, table.discrete), planned
