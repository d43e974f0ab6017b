"""How fast is LightZero on this machine? Its UniZero, made as large as a `--like` of ours.

    python3.11 -m venv lightzero  # of its own; what goes in is in benchmarks/lightzero.txt
    lightzero/bin/python benchmarks/lightzero.py lightzero-dmc-small --threads 2 --out it.json

measures, on made-up observations and targets, what `scalezero bench end-to-end --like NAME` does of
ours, and in LightZero's favour: decisions without environments and collector (its policy's
`_forward_collect` for 8 of them); updates without replay and transfer (the values that its replay
asks of the target network, and `_forward_learn`).

LightZero 0.2.0, the last release, has no mixture of experts: one like ScaleZero's takes the place
of each feed-forward layer, unless `--dense`. Pictures are read by its ResNet and learnt with a
decoder, not by a vision transformer; so of Atari only decisions are measured, no updates.
"""

import argparse
import contextlib
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

ENVS = 8
FEWEST = 5  # calls of which a median is worth telling


@dataclass(frozen=True)
class Size:
    """Of a model, its search and its updates, in the words of our config."""

    continuous: bool  # vectors and Sampled UniZero; or pictures and UniZero
    embed: int
    layers: int
    heads: int
    experts: int
    simulations: int
    candidates: int
    windows: int  # of an update
    unroll: int
    context: int  # steps that a search looks back on

    @property
    def action(self) -> int:
        """Entries of an action, or how many there are: cheetah's, or all of Atari's."""
        return 6 if self.continuous else 18

    @property
    def observation(self) -> tuple[int, ...]:
        """Its shape."""
        return (17,) if self.continuous else (3, 64, 64)


SIZES = {
    "lightzero-dmc-small": Size(True, 128, 2, 4, 4, 16, 16, 512, 5, 2),
    "lightzero-dmc-paper": Size(True, 768, 4, 24, 8, 50, 20, 128, 5, 2),
    "lightzero-atari-small": Size(False, 128, 2, 4, 4, 16, 18, 64, 10, 4),
    "lightzero-atari-paper": Size(False, 768, 4, 24, 8, 50, 18, 8, 10, 4),
}


class Expert(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width: int) -> None:
        """`width` in and out, four times that between."""
        super().__init__()
        self.gate = nn.Linear(width, 4 * width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to each token."""
        return self.out(functional.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Each token through the one of `count` experts that a router likes best, and a shared one."""

    def __init__(self, width: int, count: int) -> None:
        """`width` in and out of all of them."""
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.each = nn.ModuleList(Expert(width) for _ in range(count))
        first, last = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.shared = nn.Sequential(first, nn.GELU(), last)
        for leaf in self.parameters():
            if leaf.dim() > 1:
                nn.init.normal_(leaf, std=0.02)
            else:
                nn.init.zeros_(leaf)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens sorted by expert; experts without any cost nothing.

        A single pick weighs 1 by the paper's router, which gets no gradient then.
        """
        tokens = x.reshape(-1, x.shape[-1])
        chosen = self.router(tokens).argmax(dim=-1)
        loads = torch.bincount(chosen, minlength=len(self.each)).tolist()
        y = self.shared(tokens)
        for expert, own in zip(self.each, chosen.argsort().split(loads), strict=True):
            if len(own):
                y.index_add_(0, own, expert(tokens.index_select(0, own)))
        return y.view(x.shape)


def policy_of(size: Size, *, dense: bool) -> Any:
    """LightZero's policy: its defaults but for sizes."""
    if size.continuous:
        from lzero.model.sampled_unizero_model import SampledUniZeroModel as Model
        from lzero.policy.sampled_unizero import SampledUniZeroPolicy as Policy
    else:
        from lzero.model.unizero_model import UniZeroModel as Model
        from lzero.policy.unizero import UniZeroPolicy as Policy
    logging.getLogger().setLevel(logging.WARNING)
    config = Policy.default_config()
    _merge(config, _settings(size))
    model = Model(**config.model)
    world = model.world_model
    if not dense:
        for block in world.transformer.blocks:
            block.mlp = Experts(size.embed, size.experts)
    # Heads start at zero, so all latents would be equal, and its caches go by hashes of these.
    heads = [world.head_rewards, world.head_observations, world.head_value]
    for head in heads if size.continuous else [*heads, world.head_policy]:
        last = [layer for layer in head.head_module if isinstance(layer, nn.Linear)][-1]
        nn.init.normal_(last.weight, std=0.02)
    return Policy(config, model=model, enable_field=["learn", "collect"])


def _settings(size: Size) -> dict[str, Any]:
    """What its own scripts set, in its words."""
    world = {
        "continuous_action_space": size.continuous,
        "action_space_size": size.action,
        "num_unroll_steps": size.unroll,
        "max_blocks": size.unroll,
        "max_tokens": 2 * size.unroll,
        "context_length": 2 * size.context,
        "device": "cpu",
        "num_layers": size.layers,
        "num_heads": size.heads,
        "embed_dim": size.embed,
        "env_num": ENVS,
        "num_simulations": size.simulations,
        "rotary_emb": False,
        "obs_type": "vector" if size.continuous else "image",
    }
    model: dict[str, Any] = {
        "observation_shape": size.observation[0] if size.continuous else size.observation,
        "action_space_size": size.action,
        "continuous_action_space": size.continuous,
        "world_model_cfg": world,
    }
    if size.continuous:
        model |= {"model_type": "mlp", "num_of_sampled_actions": size.candidates}
        world |= {
            "num_of_sampled_actions": size.candidates,
            "policy_entropy_weight": 5e-2,
            "policy_loss_type": "kl",
            "sigma_type": "conditioned",
            "fixed_sigma_value": 0.5,
            "bound_type": None,
            "norm_type": "LN",
        }
    return {
        "cuda": False,
        "device": "cpu",
        "use_wandb": False,
        "env_type": "not_board_games",
        "num_unroll_steps": size.unroll,
        "batch_size": size.windows,
        "num_simulations": size.simulations,
        "game_segment_length": 100,
        "collector_env_num": ENVS,
        "reanalyze_ratio": 0,
        "model": model,
    }


def _merge(base: Any, changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def decider(policy: Any, size: Size, random: np.random.Generator) -> Callable[[], float]:
    """A decision for each environment, called as LightZero's collector does; seconds it took.

    Raises:
        RuntimeError: A root was not visited as often as there are simulations.
    """
    policy._reset_collect(reset_init_data=True)
    draw = random.standard_normal if size.continuous else random.random
    mask = [None if size.continuous else np.ones(size.action, np.int8)] * ENVS
    steps = 0

    def decide() -> float:
        nonlocal steps
        seen = torch.from_numpy(draw((ENVS, *size.observation)).astype(np.float32))
        began = time.perf_counter()
        plans = policy._forward_collect(
            seen,
            action_mask=mask,
            temperature=policy._cfg.fixed_temperature_value,
            to_play=[np.array(-1)] * ENVS,
            epsilon=0.0,
            ready_env_id=set(range(ENVS)),
            timestep=[np.array(steps)] * ENVS,
        )
        took = time.perf_counter() - began
        for plan in plans.values():
            if sum(plan["visit_count_distributions"]) != size.simulations:
                raise RuntimeError("LightZero did not make all simulations")
        steps += 1
        for env in range(ENVS):
            policy._reset_collect(env_id=env, current_steps=steps, reset_init_data=False)
        return took

    for _ in range(2 * size.context):  # until the context is full, and more
        decide()
    return decide


def learner(policy: Any, size: Size, random: np.random.Generator) -> Callable[[], float]:
    """An update of vectors' windows, shaped as LightZero's replay gives them; seconds it took."""
    many, steps, width = size.windows, size.unroll, size.observation[0]
    action = np.tanh(random.standard_normal((many, steps, size.action)))
    sampled = np.tanh(random.standard_normal((many, steps + 1, size.candidates, size.action)))
    seen = random.standard_normal((many, (steps + 1) * width)).astype(np.float32)
    mask, index, weight = np.ones((many, steps + 1)), np.arange(many), np.ones(many)
    moment = np.tile(np.arange(steps), (many, 1))
    made = np.zeros(many)
    reward = random.standard_normal((many, steps + 1)).astype(np.float32)
    value = 3 * random.standard_normal((many, steps + 1)).astype(np.float32)
    visits = random.dirichlet(np.ones(size.candidates), (many, steps + 1))
    current = [seen, action, sampled.astype(np.float32), action, mask, index, weight, made, moment]
    later = torch.from_numpy(random.standard_normal((many * (steps + 1), width)).astype(np.float32))
    updates = 0

    def update() -> float:
        nonlocal updates
        began = time.perf_counter()
        with torch.no_grad():
            policy._target_model.initial_inference(later, action, start_pos=moment)
        policy._forward_learn([[*current], [reward, value, visits], updates])
        updates += 1
        return time.perf_counter() - began

    update()  # makes the optimiser's moments
    return update


def timing(call: Callable[[], float], seconds: float) -> dict[str, float]:
    """Seconds of a call, repeated for about so long: the median, and the middle 80 %."""
    took: list[float] = []
    while len(took) < FEWEST or sum(took) < seconds:
        took.append(call())
    low, median, high = np.quantile(took, [0.1, 0.5, 0.9])
    return {"median": median, "low": low, "high": high, "calls": len(took)}


def main() -> None:
    """Measure one size, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SIZES, help="the size of the model, its search and updates")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--seconds", type=float, default=10, help="to repeat each call for")
    parser.add_argument("--dense", action="store_true", help="with its own feed-forward layers")
    parser.add_argument("--out", type=Path, help="write the JSON to a file, too")
    options = parser.parse_args()
    size = SIZES[options.name]
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    np.random.seed(0)  # LightZero draws from it
    random = np.random.default_rng(0)
    with contextlib.redirect_stdout(sys.stderr):  # LightZero prints while it works
        policy = policy_of(size, dense=options.dense)
        search = timing(decider(policy, size, random), options.seconds)
        made = {"decisions_per_s": ENVS / search["median"], "search_seconds": search}
        if size.continuous:
            update = timing(learner(policy, size, random), options.seconds)
            made |= {"windows_per_s": size.windows / update["median"], "update_seconds": update}
    packages = {name: version(name) for name in ("LightZero", "DI-engine", "torch", "numpy")}
    about = {"name": options.name, "threads": options.threads, "dense": options.dense}
    ran_on = {"platform": platform.platform(), "python": platform.python_version(), **packages}
    text = json.dumps(about | made | {"size": asdict(size), "ran_on": ran_on}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
