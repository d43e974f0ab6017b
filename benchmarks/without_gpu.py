"""What would an NVIDIA GPU run? Compiles a search or an update for one, on a machine without it.

    pip install '.[all,cuda]'  # in an environment of its own; no driver is needed
    python benchmarks/without_gpu.py search --preset dmc8 --rows 64
    python benchmarks/without_gpu.py update --preset atari8 --model.rematerialise true --out it.json

prints the memory that the program takes by XLA's account, the kernels and copies that it launches,
and how often the host must wait for a number before it can launch more. It tells nothing of time.
On a GPU, XLA chooses among kernels by trying them; here it takes its first choice, so counts differ
a little there. An update is a call of `learn.updates_per_call`, as a run makes them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # which asks the driver
os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 {os.environ.get('XLA_FLAGS', '')}"

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax._src import xla_bridge
from jax.experimental import topologies
from program import read

from scalezero import cli, configure
from scalezero.agent.act import act, empty_history
from scalezero.agent.learner import update_many
from scalezero.agent.optimiser import Optimiser
from scalezero.agent.ready import ready
from scalezero.config import Config, ConfigError
from scalezero.run import inputs
from scalezero.run.build import learner_shape, rows_of, table_of, world_shape

# What XLA asks of a card, in bytes and bytes/s, as it describes the SXM modules itself.
# Source: github.com/openxla/xla, xla/backends/gpu/target_config/specs.
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


def main() -> None:
    """Compile what the command line names, and tell what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("program", choices=("search", "update"))
    parser.add_argument("--rows", type=int, help="search: of all tasks (default: those of a run)")
    parser.add_argument("--card", choices=CARDS, default="h200")
    parser.add_argument("--out", type=Path, help="write it to a JSON file")
    parser.epilog = "Everything else is as for scalezero check: --preset, --config, any setting."
    options, rest = parser.parse_known_args()
    try:
        given, flags = cli.parse(["check", *rest])
        file, tasks = given.config, given.tasks or ()
        config = configure.resolve(preset=given.preset, file=file, tasks=tasks, flags=flags)
    except ConfigError as error:
        parser.error(str(error))
    tasks, searched = len(config.tasks), options.program == "search"
    rows = options.rows
    if rows is not None and (not searched or rows < 1 or rows % tasks):
        parser.error(f"--rows {rows}: is of a search, and must be a multiple of the {tasks} tasks")
    jax.default_backend = lambda: "gpu"  # what our code asks
    place = card(options.card)
    rows = rows or tasks * (rows_of(config) if searched else config.learn.rows)
    made = search(config, rows, place) if searched else updates(config, place)
    memory = made.memory_analysis()
    told = {
        "command": " ".join(["python", *sys.argv]),
        "card": options.card,
        "jax": jax.__version__,
        "rows": rows,
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
        world = eqx.filter_eval_shape(ready, world_shape(config))
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


def updates(config: Config, place: jax.sharding.Sharding) -> Any:
    """The updates of one call, compiled; they may write over all state but the world."""
    rule, key = Optimiser(config.learn, 1_000_000), jax.random.key(0)
    state = learner_shape(config, rule)
    absent = lambda leaf: leaf is None
    with_world = lambda rest, world: eqx.tree_at(lambda s: s.world, rest, world, is_leaf=absent)

    def given():
        task, batches = inputs.batches(config, key=key)
        return learner_shape(config, rule).world, batches, task, inputs.library(config, key=key)

    def call(rest, world, batches, task, library):
        state = with_world(rest, world)
        state, metrics = update_many(state, batches, task, library, config.learn, rule)
        # What may be written over comes back first: memory goes to the first result of its shape.
        return with_world(state, None), state.world, metrics

    return compiled(call, with_world(state, None), given, place)


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


if __name__ == "__main__":
    main()
