"""The world model: one backbone for all tasks, and what each task has of its own around it.

Every decision is two tokens: the latent z of an observation, then the action a. At z the model
reads policy and value, at a the reward and the next latent:

    z₀ → π₀ v₀    a₀ → r₀ ẑ₁    z₁ → π₁ v₁    a₁ → r₁ ẑ₂    …

`World` holds the parameters; `World.bind(task)` gathers those that a batch needs, and everything
after that sees slots and rows, no task numbers.

Sources: UniZero, Section 3 (arXiv:2406.10667); ScaleZero, Section 4.1 (arXiv:2509.07945).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scalezero.agent.heads import PerSlot, PerTask, per_task
from scalezero.agent.policies import Policy, PolicyShape, policy, squash_action
from scalezero.agent.records import Batch, History, Observation, concatenate_slots
from scalezero.agent.support import scalar
from scalezero.agent.tasks import SlotTable, TaskTable
from scalezero.config import Config, ConfigError, ModelSettings
from scalezero.nets.experts import Routing
from scalezero.nets.image import ResNet, Vit, resnet, vit
from scalezero.nets.linear import Linear, Mlp, linear, mlp
from scalezero.nets.norms import LayerNorm, RunningNorm, SimNorm, layer_norm
from scalezero.nets.transformer import Cache, Transformer, transformer
from scalezero.nets.vector import VectorEncoder, vector_encoder

SIM_GROUP = 8  # entries of one simplex of a SimNorm latent


class World(eqx.Module):
    """All parameters of the world model."""

    vector: PerTask[VectorEncoder] | None
    image: Vit | ResNet | None
    latent_norm: LayerNorm | SimNorm
    choice_tokens: Float[Array, "vocabulary choice embed"]
    dimension_tokens: PerTask[Linear]
    backbone: Transformer
    policy: PerTask[Mlp]
    value: PerTask[Mlp]
    reward: PerTask[Mlp]
    dynamics: PerTask[Mlp]
    predicted_norm: LayerNorm | SimNorm
    tasks: TaskTable = eqx.field(static=True)
    shape: PolicyShape = eqx.field(static=True)
    support_limit: float = eqx.field(static=True)
    bins: int = eqx.field(static=True)
    precision: str = eqx.field(static=True)

    def bind(self, task: Int[Array, " slot"], vector_slots: int) -> "SlotWorld":
        """The world as the slots of one batch see it.

        Args:
            task: The task of each slot, by its number in `tasks`.
            vector_slots: How many slots show vectors; these come first.
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


class Unrolled(eqx.Module):
    """The backbone's features of whole windows, and where their tokens were routed."""

    at_latent: Float[Array, "slot row time embed"]
    at_action: Float[Array, "slot row time embed"]
    routing: tuple[Routing, ...]


class SlotWorld(eqx.Module):
    """The world model bound to the tasks of one batch; arrays are `slot row …`."""

    vector: PerSlot[VectorEncoder] | None
    choice_tokens: Float[Array, "slot choice embed"]
    dimension_tokens: PerSlot[Linear]
    policy_head: PerSlot[Mlp]
    value_head: PerSlot[Mlp]
    reward_head: PerSlot[Mlp]
    dynamics_head: PerSlot[Mlp]
    shared: World
    table: SlotTable

    def encode(self, observation: Observation) -> Float[Array, "slot row *axes embed"]:
        """The latent of every observation, normalised."""
        parts = []
        if self.vector is not None and len(observation.vector):
            parts.append(self.vector(observation.vector))
        if self.shared.image is not None and len(observation.image):
            picture = observation.image
            flat = picture.reshape(-1, *picture.shape[-3:])
            latent = jax.vmap(self.shared.image)(flat)
            parts.append(latent.reshape(*picture.shape[:-3], -1))
        joint = parts[0] if len(parts) == 1 else concatenate_slots(*parts)
        return _each(self.shared.latent_norm, joint)

    def action_token(
        self, action: Float[Array, "slot row *axes action"]
    ) -> Float[Array, "slot row *axes embed"]:
        """The token of every action."""
        discrete = self.table.discrete
        index = jnp.where(discrete.reshape(-1, *[1] * (action.ndim - 2)), action[..., 0], 0.0)
        look_up = lambda tokens, i: tokens.at[i.astype(jnp.int32)].get(mode="clip")
        numbered = jax.vmap(look_up)(self.choice_tokens, index)
        dimensions = self.table.dimensions.reshape(-1, *[1] * (action.ndim - 1))
        place = jnp.arange(action.shape[-1]).reshape(*[1] * (action.ndim - 1), -1)
        squashed = jnp.where(place < dimensions, squash_action(action, discrete), 0.0)
        continuous = self.dimension_tokens(squashed)
        return jnp.where(discrete.reshape(-1, *[1] * (action.ndim - 1)), numbered, continuous)

    def unroll(
        self,
        latent: Float[Array, "slot row time embed"],
        action: Float[Array, "slot row time action"],
    ) -> "Unrolled":
        """The features of whole windows: latents of observations, and the actions taken there."""
        slots, rows, time, embed = latent.shape
        pairs = jnp.stack([latent, self.action_token(action)], axis=3)
        tokens = pairs.reshape(slots * rows, 2 * time, embed)
        backbone, dtype = self._backbone()
        features, routing = backbone.window(tokens.astype(dtype))
        paired = features.astype(jnp.float32).reshape(slots, rows, time, 2, embed)
        return Unrolled(
            at_latent=paired[..., 0, :],
            at_action=paired[..., 1, :],
            routing=jax.tree.map(lambda x: x.reshape(slots, rows, *x.shape[1:]), routing),
        )

    def root(self, history: History) -> tuple[Float[Array, "slot row embed"], Cache]:
        """The feature of each row's newest observation, with its context before it."""
        slots, rows, context, embed = history.latent.shape
        pairs = jnp.stack([history.latent, self.action_token(history.action)], axis=3)
        tokens = pairs.reshape(slots * rows, 2 * context, embed)[:, :-1]
        start = 2 * (context - history.length.reshape(-1))
        backbone, dtype = self._backbone()
        features, cache = backbone.sequence(tokens.astype(dtype), start)
        return features[:, -1].astype(jnp.float32).reshape(slots, rows, embed), cache

    def step(
        self, token: Float[Array, "slot row embed"], cache: Cache
    ) -> tuple[Float[Array, "slot row embed"], Cache]:
        """The feature of one more token of each row."""
        backbone, dtype = self._backbone()
        flat = token.reshape(-1, token.shape[-1]).astype(dtype)
        feature, cache = backbone.step(flat, cache)
        return feature.astype(jnp.float32).reshape(token.shape), cache

    def policy(self, feature: Float[Array, "slot row *axes embed"]) -> Policy:
        """The policy read at an observation's feature."""
        return policy(self.policy_head(feature), self.table, self.shared.shape)

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

    def _backbone(self) -> tuple[Transformer, jnp.dtype]:
        dtype = jnp.dtype(self.shared.precision)

        def cast(path: tuple[Any, ...], x: Any) -> Any:
            exact = {"router", "gain", "shift", "alpha"} & {
                getattr(part, "name", "") for part in path
            }
            return x if exact or not eqx.is_inexact_array(x) else x.astype(dtype)

        return jax.tree_util.tree_map_with_path(cast, self.shared.backbone), dtype


def world(config: Config, tasks: TaskTable, *, key: PRNGKeyArray) -> World:
    """A fresh world model for `tasks`.

    Values and rewards start at zero, policies nearly uniform.
    """
    size: ModelSettings = config.model
    keys = iter(jax.random.split(key, 16))
    shape = PolicyShape(
        choices=max(1, tasks.most_choices),
        dimensions=tasks.action_width,
        candidates=max(1, tasks.candidates(config.search.candidates)),
        sampled=config.search.candidates,
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
    pictures = tasks.tasks > tasks.vector_tasks
    return World(
        vector=per_task(encoder, tasks.vector_tasks, key=next(keys))
        if tasks.vector_tasks
        else None,
        image=_image_encoder(size, tasks, key=next(keys)) if pictures else None,
        latent_norm=norm(),
        choice_tokens=jax.random.normal(
            next(keys), (tasks.vocabularies, shape.choices, size.embed)
        ),
        dimension_tokens=per_task(token, tasks.tasks, key=next(keys)),
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
            key=next(keys),
        ),
        policy=head(shape.outputs, 0.01),
        value=head(size.bins, 0.0),
        reward=head(size.bins, 0.0),
        dynamics=head(size.embed, 1.0),
        predicted_norm=norm(),
        tasks=tasks,
        shape=shape,
        support_limit=size.support,
        bins=size.bins,
        precision=_precision(size),
    )


def _image_encoder(size: ModelSettings, tasks: TaskTable, *, key: PRNGKeyArray) -> Vit | ResNet:
    tall, wide, _ = tasks.image_shape
    if size.image_encoder == "vit" and (tall % size.vit_patch or wide % size.vit_patch):
        raise ConfigError(
            f"model.vit_patch = {size.vit_patch} does not divide pictures of {tall} × {wide}; "
            "choose a divisor of both"
        )
    if size.image_encoder == "resnet":
        return resnet(
            tasks.image_shape,
            size.embed,
            channels=size.resnet_channels,
            depth=size.resnet_depth,
            key=key,
        )
    return vit(
        tasks.image_shape,
        size.embed,
        patch=size.vit_patch,
        embed=size.vit_embed,
        depth=size.vit_depth,
        heads=size.vit_heads,
        hidden=size.vit_hidden,
        key=key,
    )


def _precision(size: ModelSettings) -> str:
    if size.precision != "auto":
        return size.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _each(norm: LayerNorm | SimNorm, x: Float[Array, "*axes embed"]) -> Float[Array, "*axes embed"]:
    """`norm` applied to every vector."""
    return jax.vmap(norm)(x.reshape(-1, x.shape[-1])).reshape(x.shape)
