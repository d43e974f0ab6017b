"""What would an NVIDIA GPU run? Compiles a search or an update for one, on a machine without it.

    pip install '.[all,cuda]'  # in an environment of its own; no driver is needed
    python benchmarks/without_gpu.py search --preset dmc8 --rows 64
    python benchmarks/without_gpu.py update --preset atari8 --model.rematerialise true --out it.json

prints the memory that the program takes by XLA's account, the kernels that it launches, and how
often the host must wait for a number before it can launch more: once in each branch, and in each
round of a loop whose rounds are not known before. It tells nothing of time. On a GPU, XLA chooses
among kernels by trying them; here it takes its first choice, so counts differ a little there.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # which asks the driver
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax._src import xla_bridge
from jax.experimental import topologies

from scalezero import configure
from scalezero.agent.act import act, empty_history
from scalezero.agent.learner import update as one_update
from scalezero.agent.optimiser import optimiser
from scalezero.agent.ready import ready
from scalezero.config import Config
from scalezero.run import inputs
from scalezero.run.build import learner_shape, rows_of, table_of, world_of

# What XLA asks of a card. Sources: NVIDIA's data sheets of the SXM modules.
CARDS = {
    "h100": {"memory": 84_929_347_584, "bandwidth": 3_352_320_000_000},
    "h200": {"memory": 151_397_597_184, "bandwidth": 4_800_000_000_000},
}
HOPPER = """
gpu_device_info {{
  name: "{name}" device_vendor: "NVIDIA Corporation" cuda_compute_capability {{ major: 9 }}
  device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: 52428800
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448 device_address_bits: 64 pcie_bandwidth: 34359738368
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA" device_description_str: "{name}"
dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
"""
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%\S+ = (?:\(.*?\)|\S+) ([\w-]+)\(")


@dataclass
class Part:
    """What runs each time that a part of a program does; without the rounds of its loops."""

    kernels: int = 0  # of branches, those of the longest
    waits: int = 0  # for a number from the device
    rounds: int | None = None  # of a loop, where they are known before
    loops: list["Part"] = field(default_factory=list)

    def lines(self, depth: int = 0) -> Iterator[str]:
        """A line for this part, and for each loop in it."""
        rounds = "" if not depth else f" × {self.rounds or 'each round'}"
        yield f"{'  ' * depth}{self.kernels} kernels, {self.waits} waits{rounds}"
        for loop in self.loops:
            yield from loop.lines(depth + 1)


def main() -> None:
    """Compile what the command line names, and tell what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("program", choices=("search", "update"))
    parser.add_argument("--preset", help="a name, as of scalezero train")
    parser.add_argument("--config", type=Path, help="a TOML file, over the preset")
    parser.add_argument("--rows", type=int, help="search: of all tasks (default: those of a run)")
    parser.add_argument("--card", choices=CARDS, default="h200")
    parser.add_argument("--out", type=Path, help="write it to a JSON file")
    options, rest = parser.parse_known_args()
    flags = {key.removeprefix("--"): text for key, text in zip(rest[::2], rest[1::2], strict=True)}
    config = configure.resolve(preset=options.preset, file=options.config, flags=flags)
    jax.default_backend = lambda: "gpu"  # what our code asks
    place = card(options.card)
    rows = options.rows or table_of(config).tasks * rows_of(config)
    made = search(config, rows, place) if options.program == "search" else update(config, place)
    memory = made.memory_analysis()
    told = {
        "command": " ".join(["python", *sys.argv]),
        "card": options.card,
        "jax": jax.__version__,
        "rows": rows if options.program == "search" else config.learn.rows * len(config.tasks),
        "gigabytes": {
            "arguments": memory.argument_size_in_bytes / 1e9,
            "temporary": memory.temp_size_in_bytes / 1e9,
            "peak": memory.peak_memory_in_bytes / 1e9,
        },
        "program": asdict(whole := read(made.as_text())),
    }
    print(", ".join(f"{name} {size:.2f} GB" for name, size in told["gigabytes"].items()))
    print("\n".join(whole.lines()))
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")


def card(name: str) -> jax.sharding.Sharding:
    """A card that is not there, to compile for."""
    known = xla_bridge.canonicalize_platform
    # JAX looks for the card to know which "gpu" is meant (github.com/jax-ml/jax/issues/23971).
    xla_bridge.canonicalize_platform = lambda each: (
        "cuda" if each in ("gpu", "cuda") else known(each)
    )
    target = HOPPER.format(name=f"NVIDIA {name.upper()}", **CARDS[name])
    described = topologies.get_topology_desc(
        platform="cuda", target_config=target, topology="1x1x1"
    )
    mesh = jax.sharding.Mesh(np.array(described.devices), ("card",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def search(config: Config, rows: int, place: jax.sharding.Sharding) -> Any:
    """A search for so many rows, as an actor makes it, compiled."""
    table, key = table_of(config), jax.random.key(0)
    each = rows // table.tasks

    def given():
        world = ready(world_of(config))
        history = empty_history(world, table.tasks, each, config.search.context)
        seen = inputs.observation(table, each, key=key)
        library = inputs.library(config, key=key)
        first, explore = jnp.zeros((table.tasks, each), bool), jnp.ones(())
        return world, jnp.arange(table.tasks), history, seen, library, first, explore, key

    def call(nothing, world, task, history, seen, library, first, explore, key):
        settings = config.search
        return act.__wrapped__(
            world, task, history, seen, library, first, settings, explore, key=key
        )

    return compiled(call, None, given, place)


def update(config: Config, place: jax.sharding.Sharding) -> Any:
    """One update, compiled; it may write over the state it is given."""
    rule, key = optimiser(config.learn, 1_000_000), jax.random.key(0)

    def given():
        task, batches = inputs.batches(config, key=key)
        library = inputs.library(config, key=key)
        return jax.tree.map(lambda each: each[0], (batches, task)), library

    def call(state, batch_and_task, library):
        return one_update(state, *batch_and_task, library, config.learn, rule)

    return compiled(call, learner_shape(config, rule), given, place)


def compiled(
    call: Callable[..., Any],
    owned: Any,
    given: Callable[[], tuple[Any, ...]],
    place: jax.sharding.Sharding,
) -> Any:
    """`call`, which may write over `owned`, for arrays as `given` would make them on the card."""
    shaped = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    arguments = owned, eqx.filter_eval_shape(given)
    arrays, static = eqx.partition(arguments, shaped)
    lie = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    def traced(mine, others):
        owned, given = eqx.combine((mine, others), static)
        return eqx.filter(call(owned, *given), eqx.is_array)

    program = jax.jit(traced, donate_argnums=0)
    return program.trace(*jax.tree.map(lie, arrays)).lower().compile()


def read(program: str) -> Part:
    """What a compiled program launches, from XLA's text."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if begun := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            name = begun[2]
            entry = name if begun[1] else entry
            bodies[name] = []
        elif name and line.startswith(" "):
            bodies[name].append(re.sub(r"/\*.*?\*/", "", line))

    def part(name: str) -> Part:
        found = Part()
        for line in bodies[name]:
            kind = INSTRUCTION.match(line)
            if kind is None or kind[1] in FREE:
                continue
            if kind[1] == "while":
                condition, body = (named(line, key) for key in ("condition", "body"))
                rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                loop, asks = part(body), part(condition)
                loop.rounds = int(rounds[1]) if rounds else None
                loop.kernels += asks.kernels
                loop.waits += 0 if rounds else 1
                found.loops.append(loop)
            elif kind[1] == "conditional":
                listed = re.search(r"branch_computations=\{(.*?)\}", line)
                names = (
                    [each.strip().lstrip("%") for each in listed[1].split(",")]
                    if listed
                    else [named(line, key) for key in ("true_computation", "false_computation")]
                )
                longest = max((part(each) for each in names), key=lambda each: each.kernels)
                found.kernels += longest.kernels
                found.waits += 1 + longest.waits
                found.loops += longest.loops
            else:
                found.kernels += 1
        return found

    return part(entry)


def named(line: str, key: str) -> str:
    """The computation that an instruction names."""
    return re.search(rf"{key}=%?([\w.-]+)", line)[1]


if __name__ == "__main__":
    main()
