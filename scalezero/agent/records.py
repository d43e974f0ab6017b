"""The records that pass between the parts of the agent, and the one rule of time.

Time: `action[t]` was taken at `observation[t]`, and `reward[t]` is what followed it. An episode of
n decisions has n + 1 rows: the last holds the *final* observation, at which nothing is decided,
and its `ending` says how the episode ended.

Order: slots whose task shows vectors come first, then those with pictures, those with text last.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from scalezero.nets.experts import Routing


class Observation(eqx.Module):
    """What the slots of a batch show, `slot row …`; vectors are padded with zeros to the widest."""

    vector: Float[Array, "... size"]
    image: UInt8[Array, "... height width channel"]
    text: Int[Array, "... number"]  # in the run's library: of a page's text, then of its actions


class Listing(eqx.Module):
    """The actions that pages list, as the model reads them; only slots with text have any."""

    exists: Bool[Array, "text_slot row *axes choice"]
    token: Float[Array, "text_slot row *axes choice embed"] | None  # None: told by place alone
    key: Float[Array, "text_slot row *axes choice key"] | None  # what a policy's query meets


class Batch(eqx.Module):
    """Windows of `time` decisions, and of the rows after them that targets need.

    A stack of them, for several updates, has one more leading axis.

    `known[t]` says that row t exists and belongs to the episode of row 0.
    """

    observation: Observation  # time + n_step + 1 rows
    action: Float[Array, "*batch slot row transition action"]  # time + n_step rows
    candidates: Float[Array, "*batch slot row time candidate action"]
    policy: Float[Array, "*batch slot row time candidate"]
    valid: Bool[Array, "*batch slot row time candidate"]
    reward: Float[Array, "*batch slot row transition"]  # time + n_step rows
    ending: UInt8[Array, "*batch slot row moment"]  # time + n_step + 1 rows
    known: Bool[Array, "*batch slot row moment"]


class History(eqx.Module):
    """What each environment's agent looks back on; the newest entry is the last."""

    latent: Float[Array, "slot row context embed"]
    token: Float[Array, "slot row context embed"]  # of the action taken there; the newest: none yet
    length: Int[Array, "slot row"]  # entries of the current episode


class Plan(eqx.Module):
    """What was decided for each row, by a search or at random, and what it teaches."""

    action: Float[Array, "slot row action"]
    candidates: Float[Array, "slot row candidate action"]
    policy: Float[Array, "slot row candidate"]
    value: Float[Array, "slot row"]


class Unrolled(eqx.Module):
    """The backbone's features of whole windows, and where their tokens were routed."""

    at_latent: Float[Array, "slot row time embed"]
    at_action: Float[Array, "slot row time embed"]
    routing: tuple[Routing, ...]


class Targets(eqx.Module):
    """What each step of a window should have predicted, and where that is known."""

    latent: Float[Array, "slot row time embed"]  # of the *next* observation
    reward: Float[Array, "slot row time"]
    value: Float[Array, "slot row time"]
    decided: Bool[Array, "slot row time"]  # a decision was taken here: policy
    followed: Bool[Array, "slot row time"]  # … and its next observation is known: next latent
    rewarded: Bool[Array, "slot row time"]  # … or the episode has terminated: reward 0 from here on
    valued: Bool[Array, "slot row time"]  # there is something to bootstrap from, or termination


def concatenate_slots(*parts: Float[Array, " _ *axes"]) -> Float[Array, " slot *axes"]:
    """All kinds of slots in their one order."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=0)
