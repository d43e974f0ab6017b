"""The world model: one backbone for all tasks, and what each task has of its own around it.

Every decision is two tokens: the latent z of an observation, then the action a. At z the model
reads policy and value, at a the reward and the next latent:

    z₀ → π₀ v₀    a₀ → r₀ ẑ₁    z₁ → π₁ v₁    a₁ → r₁ ẑ₂    …

`World` holds the parameters; `World.bind(task)` gathers those that a batch needs, and everything
after that sees slots and rows, no task numbers.

Sources: UniZero, Section 3 (arXiv:2406.10667); ScaleZero, Section 4.1 (arXiv:2509.07945).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from scalezero.agent.heads import PerSlot, PerTask, per_task
from scalezero.agent.policies import Policy, PolicyShape, policy, squash_action
from scalezero.agent.records import (
    Batch,
    History,
    Listing,
    Observation,
    Unrolled,
    concatenate_slots,
)
from scalezero.agent.support import scalar
from scalezero.agent.tasks import SlotTable, TaskTable
from scalezero.config import Config, ConfigError, ModelSettings, TextSettings
from scalezero.nets.image import ResNet, Vit, resnet, vit
from scalezero.nets.linear import Linear, Mlp, linear, mlp, narrowed
from scalezero.nets.norms import LayerNorm, RunningNorm, SimNorm, layer_norm
from scalezero.nets.text import MINILM, Bert, TextEncoder, bert, text_encoder
from scalezero.nets.transformer import Cache, Transformer, transformer
from scalezero.nets.vector import VectorEncoder, vector_encoder

SIM_GROUP = 8  # entries of one simplex of a SimNorm latent


class World(eqx.Module):
    """All parameters of the world model."""

    vector: PerTask[VectorEncoder] | None
    image: Vit | ResNet | None
    reader: Bert | None  # None: the library already holds embeddings, not tokens
    text: TextEncoder | None
    latent_norm: LayerNorm | SimNorm
    choice_tokens: Float[Array, "vocabulary choice embed"]
    dimension_tokens: PerTask[Linear]
    listed_tokens: Linear | None  # None: listed actions are told by their places
    listed_keys: Linear | None
    backbone: Transformer
    policy: PerTask[Mlp]
    value: PerTask[Mlp]
    reward: PerTask[Mlp]
    dynamics: PerTask[Mlp]
    predicted_norm: LayerNorm | SimNorm
    tasks: TaskTable = eqx.field(static=True)
    action_words: int = eqx.field(static=True)  # tokens that `reader` reads of a listed action
    shape: PolicyShape = eqx.field(static=True)
    support_limit: float = eqx.field(static=True)
    bins: int = eqx.field(static=True)
    precision: str = eqx.field(static=True)

    def bind(
        self,
        task: Int[Array, " slot"],
        vector_slots: int,
        library: Shaped[Array, "text content"],
    ) -> "SlotWorld":
        """The world as the slots of one batch see it.

        Args:
            task: The task of each slot, by its number in `tasks`.
            vector_slots: How many slots show vectors; these come first.
            library: What the numbers of texts stand for: embeddings, or tokens for `reader`.
        """
        table = self.tasks.look_up(task)
        return SlotWorld(
            vector=None if self.vector is None else self.vector.bind(task[:vector_slots]),
            choice_tokens=self.choice_tokens[table.vocabulary],
            dimension_tokens=self.dimension_tokens.bind(task),
            policy_head=self.policy.bind(task),
            value_head=self.value.bind(task),
            reward_head=self.reward.bind(task),
            dynamics_head=self.dynamics.bind(task),
            library=library,
            shared=self,
            table=table,
        )

    def watch(self, batch: Batch, task: Int[Array, " slot"]) -> "World":
        """The world with running statistics that take in the known rows of one more batch."""
        if self.vector is None:
            return self
        vector = batch.observation.vector
        slots, rows, moments, size = vector.shape
        owner = jnp.repeat(task[:slots], rows * moments)
        known, flat = batch.known[:slots].reshape(-1), vector.reshape(-1, size)

        def watch(norm: RunningNorm, number: Int[Array, ""]) -> RunningNorm:
            return norm.watch(flat, (known & (owner == number)).astype(flat.dtype))

        numbers = jnp.arange(self.tasks.vector_tasks)
        scale = eqx.filter_vmap(watch)(self.vector.layers.scale, numbers)
        return eqx.tree_at(lambda world: world.vector.layers.scale, self, scale)

    @property
    def support(self) -> Float[Array, " bin"]:
        """The atoms of values and rewards, on the squashed scale."""
        return jnp.linspace(-self.support_limit, self.support_limit, self.bins)


class SlotWorld(eqx.Module):
    """The world model bound to the tasks of one batch; arrays are `slot row …`."""

    vector: PerSlot[VectorEncoder] | None
    choice_tokens: Float[Array, "slot choice embed"]
    dimension_tokens: PerSlot[Linear]
    policy_head: PerSlot[Mlp]
    value_head: PerSlot[Mlp]
    reward_head: PerSlot[Mlp]
    dynamics_head: PerSlot[Mlp]
    library: Shaped[Array, "text content"]
    shared: World
    table: SlotTable

    def entrants(self, considered: int) -> set[int]:
        """How many actions, at most `considered`, a search chooses among in one row or another."""
        offers = self.shared.tasks.offers(self.shared.shape.sampled)
        return {min(count, considered) for count in offers}

    def encode(self, observation: Observation) -> Float[Array, "slot row *axes embed"]:
        """The latent of every observation, normalised."""
        parts = []
        if self.vector is not None and len(observation.vector):
            parts.append(self.vector(observation.vector))
        if self.shared.image is not None and len(observation.image):
            picture = observation.image
            flat = picture.reshape(-1, *picture.shape[-3:])
            latent = jax.vmap(narrowed(self.shared.image, self.shared.precision))(flat)
            parts.append(latent.reshape(*picture.shape[:-3], -1))
        if self.shared.text is not None and len(observation.text):
            sentence = self._sentence(observation.text[..., 0])
            parts.append(_each(self.shared.text, sentence))
        return _each(self.shared.latent_norm, concatenate_slots(*parts))

    def listing(self, text: Int[Array, "text_slot row *axes number"]) -> Listing:
        """The actions that pages list, given the numbers of their texts."""
        number, tokens, keys = text[..., 1:], self.shared.listed_tokens, self.shared.listed_keys
        if tokens is None or keys is None or not len(text):
            return Listing(number >= 0, None, None)
        sentence = self._sentence(number, self.shared.action_words)
        return Listing(number >= 0, _each(tokens, sentence), _each(keys, sentence))

    def action_token(
        self, action: Float[Array, "slot row *axes action"], listing: Listing
    ) -> Float[Array, "slot row *axes embed"]:
        """The token of every action; slots with text chose from `listing`."""
        discrete = self.table.discrete
        index = jnp.where(discrete.reshape(-1, *[1] * (action.ndim - 2)), action[..., 0], 0.0)
        look_up = lambda tokens, i: tokens.at[i.astype(jnp.int32)].get(mode="clip")
        numbered = jax.vmap(look_up)(self.choice_tokens, index)
        dimensions = self.table.dimensions.reshape(-1, *[1] * (action.ndim - 1))
        place = jnp.arange(action.shape[-1]).reshape(*[1] * (action.ndim - 1), -1)
        squashed = jnp.where(place < dimensions, squash_action(action, discrete), 0.0)
        continuous = self.dimension_tokens(squashed)
        token = jnp.where(discrete.reshape(-1, *[1] * (action.ndim - 1)), numbered, continuous)
        if listing.token is None:
            return token
        told = len(action) - len(listing.token)
        place = action[told:, ..., :1].astype(jnp.int32)
        named = jnp.take_along_axis(listing.token, place[..., None], axis=-2, mode="clip")
        return concatenate_slots(token[:told], named[..., 0, :])

    def unroll(
        self,
        latent: Float[Array, "slot row time embed"],
        token: Float[Array, "slot row time embed"],
    ) -> Unrolled:
        """The features of whole windows: latents, and the tokens of the actions taken there."""
        slots, rows, time, embed = latent.shape
        features, routing = self._backbone().window(_interleaved(latent, token))
        paired = features.reshape(slots, rows, time, 2, embed)
        return Unrolled(
            at_latent=paired[..., 0, :],
            at_action=paired[..., 1, :],
            routing=jax.tree.map(lambda x: x.reshape(slots, rows, *x.shape[1:]), routing),
        )

    def later(
        self,
        latent: Float[Array, "slot row transition embed"],
        token: Float[Array, "slot row transition embed"],
        first: Int[Array, "slot row"],
        count: int,
    ) -> Float[Array, "slot row time embed"]:
        """Of what `unroll` gives, the features at the `first` latent and those after, for less."""
        slots, rows, _, embed = latent.shape
        tokens = _interleaved(latent, token)
        features = self._backbone().later(tokens, 2 * first.reshape(-1), count)
        return features.reshape(slots, rows, count, embed)

    def root(self, history: History) -> tuple[Float[Array, "slot row embed"], Cache]:
        """The feature of each row's newest observation, with its context before it."""
        slots, rows, context, embed = history.latent.shape
        tokens = _interleaved(history.latent, history.token)[:, :-1]
        start = 2 * (context - history.length.reshape(-1))
        features, cache = self._backbone().sequence(tokens, start)
        return features[:, -1].reshape(slots, rows, embed), cache

    def step(
        self, token: Float[Array, "slot row *axes embed"], cache: Cache
    ) -> tuple[Float[Array, "slot row *axes embed"], Cache]:
        """The feature of one more token of each sequence in the cache."""
        feature, cache = self._backbone().step(token.reshape(-1, token.shape[-1]), cache)
        return feature.reshape(token.shape), cache

    def policy(self, feature: Float[Array, "slot row *axes embed"], listing: Listing) -> Policy:
        """The policy read at an observation's feature; slots with text choose from `listing`."""
        return policy(self.policy_head(feature), self.table, self.shared.shape, listing)

    def value(
        self, feature: Float[Array, "slot row *axes embed"]
    ) -> Float[Array, "slot row *axes"]:
        """The value read at an observation's feature, on the scale of returns."""
        return scalar(self.value_head(feature), self.shared.support)

    def reward(
        self, feature: Float[Array, "slot row *axes embed"]
    ) -> Float[Array, "slot row *axes"]:
        """The reward read at an action's feature, on the learner's scale."""
        return scalar(self.reward_head(feature), self.shared.support)

    def next_latent(
        self, feature: Float[Array, "slot row *axes embed"]
    ) -> Float[Array, "slot row *axes embed"]:
        """The next observation's latent as predicted at an action's feature, normalised."""
        return _each(self.shared.predicted_norm, self.dynamics_head(feature))

    def _sentence(
        self, number: Int[Array, "*axes"], words: int | None = None
    ) -> Float[Array, "*axes hidden"]:
        """The embedding of each text; of no text, anything. At most `words` tokens are read."""
        content = self.library[jnp.maximum(number, 0)]
        reader = self.shared.reader
        return content if reader is None else _each(reader, content[..., :words])

    def _backbone(self) -> Transformer:
        return narrowed(self.shared.backbone, self.shared.precision)


def _interleaved(
    latent: Float[Array, "slot row time embed"], token: Float[Array, "slot row time embed"]
) -> Float[Array, "_ token embed"]:
    """The tokens of each window: a latent, the action taken there, the next latent, …"""
    slots, rows, time, embed = latent.shape
    return jnp.stack([latent, token], axis=3).reshape(slots * rows, 2 * time, embed)


def world(config: Config, tasks: TaskTable, *, precision: str, key: PRNGKeyArray) -> World:
    """A fresh world model for `tasks`.

    Values and rewards start at zero, policies nearly uniform.

    Args:
        config: Of the run.
        tasks: What it must know of the run's tasks.
        precision: What matrix products of backbone and vision transformer multiply.
        key: Consumed.
    """
    size, reading = config.model, config.text
    *parts, words = jax.random.split(key, 17)
    keys = iter(parts)
    told = tasks.text_tasks > 0
    named = told and reading.actions == "listed"
    shape = PolicyShape(
        choices=max(1, tasks.most_choices),
        dimensions=tasks.action_width,
        candidates=max(1, tasks.candidates(config.search.candidates)),
        sampled=config.search.candidates,
        key=size.head_width if named else 0,
        sigma_min=config.learn.sigma_min,
        sigma_max=config.learn.sigma_max,
    )
    norm = lambda: layer_norm(size.embed) if size.latent_norm == "layer" else SimNorm(SIM_GROUP)
    head = lambda out, gain: per_task(
        lambda k: mlp(size.embed, size.head_width, out, gain=gain, key=k),
        tasks.tasks,
        key=next(keys),
    )
    encoder = lambda k: vector_encoder(tasks.vector_size, size.vector_width, size.embed, key=k)
    token = lambda k: linear(tasks.action_width, size.embed, bias=False, key=k)
    pictures = tasks.tasks > tasks.vector_tasks + tasks.text_tasks
    text = _text(size, reading, key=words) if told else {}
    return World(
        vector=per_task(encoder, tasks.vector_tasks, key=next(keys))
        if tasks.vector_tasks
        else None,
        image=_image_encoder(size, tasks, key=next(keys)) if pictures else None,
        reader=text.get("reader"),
        text=text.get("text"),
        latent_norm=norm(),
        choice_tokens=jax.random.normal(
            next(keys), (tasks.vocabularies, shape.choices, size.embed)
        ),
        dimension_tokens=per_task(token, tasks.tasks, key=next(keys)),
        listed_tokens=text.get("listed_tokens"),
        listed_keys=text.get("listed_keys"),
        backbone=transformer(
            size.embed,
            size.layers,
            size.heads,
            size.window,
            routed=size.experts,
            routed_hidden=size.expert_width,
            shared_hidden=size.shared_width,
            picks=size.expert_picks,
            router=size.router,
            rematerialise=size.rematerialise,
            key=next(keys),
        ),
        policy=head(shape.outputs, 0.01),
        value=head(size.bins, 0.0),
        reward=head(size.bins, 0.0),
        dynamics=head(size.embed, 1.0),
        predicted_norm=norm(),
        tasks=tasks,
        action_words=reading.action_tokens,
        shape=shape,
        support_limit=size.support,
        bins=size.bins,
        precision=precision,
    )


def _image_encoder(size: ModelSettings, tasks: TaskTable, *, key: PRNGKeyArray) -> Vit | ResNet:
    tall, wide, _ = tasks.image_shape
    if size.image_encoder == "vit" and (tall % size.vit_patch or wide % size.vit_patch):
        raise ConfigError(
            f"model.vit_patch = {size.vit_patch} does not divide pictures of {tall} × {wide}; "
            "choose a divisor of both"
        )
    if size.image_encoder == "resnet":
        channels, depth = size.resnet_channels, size.resnet_depth
        return resnet(tasks.image_shape, size.embed, channels=channels, depth=depth, key=key)
    return vit(
        tasks.image_shape,
        size.embed,
        patch=size.vit_patch,
        embed=size.vit_embed,
        depth=size.vit_depth,
        heads=size.vit_heads,
        hidden=size.vit_hidden,
        rematerialise=size.rematerialise,
        key=key,
    )


def _text(size: ModelSettings, reading: TextSettings, *, key: PRNGKeyArray) -> dict[str, Any]:
    """What a world model with text has more, by field."""
    own, page, token, like = jax.random.split(key, 4)
    small = MINILM._replace(
        places=reading.tokens,
        embed=reading.scratch_width,
        hidden=4 * reading.scratch_width,
        layers=reading.scratch_layers,
        heads=4,
    )
    sizes = small if reading.encoder == "scratch" else MINILM
    named = reading.actions == "listed"
    return {
        "reader": bert(sizes, key=own) if reading.trains else None,
        "text": text_encoder(sizes.embed, size.head_width, size.embed, key=page),
        "listed_tokens": linear(sizes.embed, size.embed, bias=False, key=token) if named else None,
        "listed_keys": linear(sizes.embed, size.head_width, bias=False, key=like)
        if named
        else None,
    }


def _each(
    layer: Callable[[Array], Array], x: Shaped[Array, "*axes in"]
) -> Float[Array, "*axes out"]:
    """`layer` applied to every vector."""
    y = jax.vmap(layer)(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])
