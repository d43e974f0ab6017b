"""Every setting there is, with its meaning, its unit and its default.

Frozen: no code changes one after it is read. ScaleZero's own values: presets, `docs/fidelity.md`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Discount = Annotated[float, Field(gt=0, lt=1)]


class ConfigError(ValueError):
    """A setting that cannot be used; the message says where it is and what to do."""


class Section(BaseModel):
    """A group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def require(ok: bool, message: str) -> None:
    """Raise a `ValueError` unless `ok`."""
    if not ok:
        raise ValueError(message)


class ModelSettings(Section):
    """The world model's size and parts."""

    embed: PositiveInt = 64
    """Width of every token."""
    layers: PositiveInt = 2
    """Transformer blocks."""
    heads: PositiveInt = 4
    """Attention heads; must divide `embed` into even parts."""
    window: PositiveInt = 7
    """Tokens that a token may attend to, itself included."""
    experts: Natural = 4
    """Routed experts in each block; 0 for a dense block of `shared_width`."""
    expert_picks: PositiveInt = 1
    """Experts that each token is sent to."""
    expert_width: PositiveInt = 64
    """Hidden width of each routed SwiGLU expert."""
    shared_width: PositiveInt = 128
    """Hidden width of the shared expert, or of the dense block."""
    router: Literal["trained", "paper"] = "trained"
    """"trained": softmax over all experts, then the choice. "paper": the choice, then softmax."""
    latent_norm: Literal["layer", "sim"] = "layer"
    """How latents are normalised; "layer" goes with squared error, "sim" with KL."""
    head_width: PositiveInt = 64
    """Hidden width of each task's heads."""
    vector_width: PositiveInt = 64
    """Hidden width of each task's encoder of state vectors."""
    image_encoder: Literal["vit", "resnet"] = "vit"
    """What reads pictures."""
    vit_patch: PositiveInt = 8
    """Side of a square patch, in pixels."""
    vit_embed: PositiveInt = 64
    """Width of the vision transformer."""
    vit_depth: PositiveInt = 2
    """Blocks of the vision transformer."""
    vit_heads: PositiveInt = 4
    """Heads of the vision transformer; must divide `vit_embed`."""
    vit_hidden: PositiveInt = 128
    """Hidden width of the vision transformer's feed-forward layers."""
    resnet_channels: PositiveInt = 32
    """Feature maps of the residual network."""
    resnet_depth: PositiveInt = 1
    """Residual blocks at the lowest resolution."""
    bins: PositiveInt = 101
    """Atoms of the categorical value and reward; odd, so that zero is one of them."""
    support: Positive = 30.0
    """The atoms reach from -support to support on the scale of h(x) (see agent/support.py)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of what large matrix products multiply; "auto": as run/precision.py says of this machine."""
    rematerialise: bool = False
    """Compute blocks anew for their gradients: updates take less memory, and longer."""

    @model_validator(mode="after")
    def _check(self) -> "ModelSettings":
        even = [n for n in range(1, self.embed + 1) if self.embed % (2 * n) == 0]
        listed = ", ".join(map(str, even))
        like = f"with this embed, heads can be {listed}" if even else "choose an even embed"
        require(
            self.embed % (2 * self.heads) == 0,
            f"model.heads = {self.heads} does not split model.embed = {self.embed} into even "
            f"parts; {like}",
        )
        require(
            self.vit_embed % self.vit_heads == 0,
            f"model.vit_heads = {self.vit_heads} does not divide "
            f"model.vit_embed = {self.vit_embed}; choose a divisor",
        )
        require(
            self.latent_norm != "sim" or self.embed % 8 == 0,
            f'model.embed = {self.embed} must be a multiple of 8 for model.latent_norm = "sim"',
        )
        require(
            self.experts == 0 or self.expert_picks <= self.experts,
            f"model.expert_picks = {self.expert_picks} is more than model.experts = {self.experts}",
        )
        odd = self.bins % 2 == 1 and self.bins > 1
        require(odd, f"model.bins = {self.bins} must be odd, above 1")
        return self


class TextSettings(Section):
    """How pages of text and the actions listed on them are read."""

    encoder: Literal["minilm", "minilm-finetuned", "scratch"] = "minilm"
    """Frozen all-MiniLM-L6-v2, the same as a start that goes on learning, or a small new one."""
    actions: Literal["listed", "index"] = "listed"
    """"listed": an action is its words. "index": its place in the list, as in the reference."""
    tokens: Annotated[int, Field(gt=2, le=512)] = 512
    """Word pieces read of a page; more are cut, and counted."""
    action_tokens: PositiveInt = 16
    """Word pieces that an encoder which learns reads of a listed action."""
    scratch_width: Annotated[int, Field(gt=0, multiple_of=4)] = 64
    """Width of a new encoder, which has four heads."""
    scratch_layers: PositiveInt = 2
    """Blocks of a new encoder."""
    capacity: PositiveInt = 8_192
    """Different texts to reserve room for; beyond that the room doubles, and compiles anew."""

    @property
    def trains(self) -> bool:
        """Whether the encoder of sentences is part of what is learnt."""
        return self.encoder != "minilm"


class SearchSettings(Section):
    """How each decision is planned."""

    kind: Literal["gumbel", "puct"] = "gumbel"
    """"gumbel": sequential halving, few simulations. "puct": visit counts, as in the paper."""
    simulations: PositiveInt = 12
    """Model steps for each decision."""
    candidates: PositiveInt = 16
    """Actions sampled at each node of a continuous task."""
    considered: PositiveInt = 8
    """Gumbel: root actions that enter sequential halving."""
    context: PositiveInt = 2
    """Observations the agent looks back on, the current one included."""
    value_scale: Positive = 0.1
    """Gumbel: weight of the searched values against the prior, for each visit."""
    visit_offset: NonNegative = 50.0
    """Gumbel: visits added to the most visited action's count before `value_scale` applies."""
    value_floor: NonNegative = 0.0
    """Gumbel: values of actions that differ by less than this count as differing little."""
    noise_fraction: Fraction = 0.25
    """pUCT: weight of the Dirichlet noise at the root while collecting."""
    noise_alpha: Positive = 0.3
    """pUCT: concentration of the Dirichlet noise."""
    temperature: Positive = 0.25
    """pUCT: of the visit counts while collecting."""


class LossSettings(Section):
    """Weights of the parts of the loss."""

    latent: NonNegative = 10.0
    """Next-latent prediction."""
    reward: NonNegative = 1.0
    """Categorical reward."""
    value: NonNegative = 0.5
    """Categorical value."""
    policy: NonNegative = 1.0
    """Cross-entropy to the search's policy."""
    entropy: NonNegative = 5e-3
    """Entropy bonus, relative to `policy`."""
    balance: NonNegative = 0.0
    """Even load of the experts (Switch Transformer's auxiliary loss)."""
    router_z: NonNegative = 0.0
    """Squared log-partition of the router's logits (ST-MoE's z-loss)."""


class LearnSettings(Section):
    """How the world model learns from what is remembered."""

    unroll: PositiveInt = 5
    """Decisions in a training window."""
    n_step: PositiveInt = 5
    """Rewards in a value target before it bootstraps."""
    discount: Discount = 0.99
    """For each decision, of tasks without their own."""
    rows: PositiveInt = 16
    """Windows of each slot in a batch; there is one slot for each task."""
    recent: Fraction = 0.0
    """Share of the windows drawn from the newest fifth of the replay; the others from all of it."""
    replay_ratio: Positive = 0.5
    """Updates for each decision of one task; an update has `rows` windows of every task."""
    updates_per_call: PositiveInt = 8
    """Updates compiled into one call."""
    learning_rate: Positive = 1e-3
    """Of AdamW."""
    schedule: Literal["constant", "cosine", "late"] = "constant"
    """"cosine" falls to zero at the run's end; "late" does so in a line over its last 40 %."""
    warmup: Natural = 0
    """Updates over which the learning rate rises from zero."""
    beta1: Decay = 0.9
    """AdamW's decay of the first moment."""
    beta2: Decay = 0.95
    """AdamW's decay of the second moment."""
    weight_decay: NonNegative = 1e-4
    """Of matrices and learnt tables; biases and norms have none."""
    clip: Positive = 5.0
    """Largest global norm of a gradient."""
    target_rate: Fraction = 0.02
    """Share of the online weights in the target average, at each update."""
    sigma_min: Positive = 0.1
    """Smallest deviation of a continuous policy, before the squashing."""
    sigma_max: Positive = 1.0
    """Largest deviation of a continuous policy, before the squashing."""
    loss: LossSettings = LossSettings()
    """Weights of the parts of the loss."""

    @model_validator(mode="after")
    def _check(self) -> "LearnSettings":
        require(
            self.sigma_min < self.sigma_max,
            f"learn.sigma_min = {self.sigma_min} must be below learn.sigma_max = {self.sigma_max}",
        )
        return self


class DataSettings(Section):
    """How experience is gathered and kept."""

    envs: PositiveInt = 8
    """Environments of each task."""
    groups: Literal["auto", 1, 2] = "auto"
    """Groups they form; of two, one is planned for while the other steps. "auto": 1 on a CPU."""
    replay_bytes: PositiveInt = 2_000_000_000
    """Memory of all replay together."""
    replay_rows: PositiveInt = 500_000
    """Most decisions remembered for each task."""
    warmup_decisions: Natural = 256
    """Decisions of each task, at random, after which planning and learning start."""
    patience: NonNegative = 0.2
    """Seconds that a turn waits for slow games of text; 3600 makes a run with text repeatable."""

    @model_validator(mode="after")
    def _check(self) -> "DataSettings":
        even = self.envs % 2 == 0 or self.groups == 1
        require(even, f"data.envs = {self.envs} must be even, or data.groups = 1")
        return self


class RunSettings(Section):
    """How long a run lasts and what it writes, in decisions of each task (see docs/glossary.md)."""

    decisions: PositiveInt = 100_000
    """The run's length: decisions of each task, each of `action_repeat` simulator steps."""
    updates: PositiveInt | None = None
    """Ends the run sooner: after so many updates."""
    interactions: PositiveInt | None = None
    """Ends the run sooner: after so many decisions of all tasks together."""
    evaluate_every: PositiveInt = 10_000
    """Between evaluations; there is always one at the end."""
    evaluation_episodes: PositiveInt = 8
    """Episodes of each task in an evaluation during training."""
    final_episodes: PositiveInt = 20
    """Episodes of each task in the evaluation at the end."""
    save_minutes: Positive = 5.0
    """Wall time between checkpoints."""
    keep: PositiveInt = 2
    """Checkpoints kept."""
    log_every: PositiveInt = 500
    """Between lines of metrics."""


class DpsSettings(Section):
    """Dynamic parameter scaling: solved tasks leave training, and the model grows in stages."""

    on: bool = False
    """Whether tasks leave when they are solved, and the backbone freezes and grows adapters."""
    stages: PositiveInt = 5
    """Stages in all; the first has no adapters, so there are stages - 1 of them in the end."""
    first_updates: Natural = 10_000
    """Updates that stage 0 lasts at least."""
    stage_updates: PositiveInt = 5_000
    """Updates after which a stage ends even if its quota of tasks was not solved."""
    rank: PositiveInt = 8
    """Inner width of each adapter."""
    alpha: Positive = 4.0
    """An adapter's output is multiplied by alpha / rank."""
    dropout: Decay = 0.0
    """Share of its inputs that an adapter does not see in an update."""
    scales: Literal["learnt", "frozen"] = "learnt"
    """"learnt": base and older adapters have a strength in 0.8 … 1.2 that trains; "frozen": 1."""
    encoder: bool = False
    """Whether the encoder of pictures freezes and grows too; the others always train."""
    target: Fraction | None = None
    """Normalised score from which a task is solved; without it, each task's own target return."""
    average: PositiveInt = 1
    """Evaluations whose mean is compared with the target."""
    confidence: NonNegative = 0.0
    """Standard errors by which that mean must exceed the target."""
    reopen: Fraction = 0.9
    """A solved task is open again when it falls below this share of the way to its target."""
    freed: Literal["share", "stop"] = "share"
    """What solved tasks leave: "share": unsolved ones get it; "stop": it rests, as in the paper."""
    end: bool = False
    """Whether the run ends as soon as all tasks are solved; with freed = "stop" it always does."""


class EnvSettings(Section):
    """What a run changes about one task, under `[env."suite/task"]`."""

    floor: float | None = None
    """The return that normalises to 0: random play, or the lowest possible."""
    ceiling: float | None = None
    """The return that normalises to 1."""
    target: float | None = None
    """The return from which the task counts as solved."""
    action_repeat: PositiveInt | None = None
    """Simulator steps for each decision."""
    max_decisions: PositiveInt | None = None
    """Decisions until the time limit."""
    discount: Discount | None = None
    """For each decision, in place of `learn.discount`."""
    options: dict[str, str | int | float] | None = None
    """dmc: engine, threads; atari: sticky, noops, threads; jericho: games, location, inventory,
    listing; textworld: world."""


class Config(Section):
    """One run, wholly described by this value."""

    tasks: tuple[str, ...] = ()
    """Names of the tasks (`scalezero tasks` lists them)."""
    seed: Natural = 0
    """Of everything random."""
    model: ModelSettings = ModelSettings()
    """The world model's size and parts."""
    text: TextSettings = TextSettings()
    """How pages of text and the actions listed on them are read."""
    search: SearchSettings = SearchSettings()
    """How each decision is planned."""
    learn: LearnSettings = LearnSettings()
    """How the world model learns."""
    data: DataSettings = DataSettings()
    """How experience is gathered and kept."""
    run: RunSettings = RunSettings()
    """How long a run lasts and what it writes."""
    dps: DpsSettings = DpsSettings()
    """Dynamic parameter scaling."""
    env: dict[str, EnvSettings] = {}
    """Changes to single tasks, by name."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        needed = 2 * self.search.context - 1
        require(
            self.model.window >= needed,
            f"model.window = {self.model.window} tokens cannot hold search.context = "
            f"{self.search.context} observations; it must be at least {needed}",
        )
        if self.dps.on:
            self._check_dps()
        repeated = {name for name in self.tasks if self.tasks.count(name) > 1}
        require(not repeated, f"tasks names {', '.join(sorted(repeated))} more than once")
        unknown = ", ".join(sorted(set(self.env) - set(self.tasks)))
        require(not unknown, f"env.{unknown} is not one of the run's tasks; name it in tasks")
        return self

    def _check_dps(self) -> None:
        """That every stage can be reached, and that adapters are smaller than what they adapt."""
        dps, model = self.dps, self.model
        updates = self.learn.replay_ratio * (self.run.decisions - self.data.warmup_decisions)
        updates = min(updates, self.run.updates or updates)
        latest = max(dps.first_updates, dps.stage_updates) + (dps.stages - 2) * dps.stage_updates
        require(
            dps.stages == 1 or latest < updates,
            f"dps.stages = {dps.stages}: the last stage may begin as late as update {latest:,}, "
            f"but the run has {updates:,.0f}; lower dps.first_updates or dps.stage_updates",
        )
        hidden = model.expert_width if model.experts else model.shared_width
        pictures = dps.encoder and model.image_encoder == "vit"
        widths = [model.vit_embed, model.vit_hidden] if pictures else []
        narrow = min(model.embed, hidden, *widths)
        require(
            dps.confidence == 0 or dps.average * self.run.evaluation_episodes > 1,
            f"dps.confidence = {dps.confidence} needs more than the one episode it would judge; "
            "raise run.evaluation_episodes or dps.average",
        )
        require(
            dps.rank <= narrow,
            f"dps.rank = {dps.rank} is more than the {narrow} rows of a matrix that it adapts",
        )
