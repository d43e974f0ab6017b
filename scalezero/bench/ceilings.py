"""What can this machine do at most? One large matrix product and one large read, measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

SIDE = {"cpu": 3072}  # of the matrices; elsewhere 8192
READ = {"cpu": 1 << 28}  # bytes; elsewhere 4 GiB
ROUNDS = 7  # of which the fastest counts: it is a ceiling


@dataclass(frozen=True)
class Ceilings:
    """Of one device, or of all cores."""

    device: str
    flops: float  # per second; a multiply-add is two
    bytes: float  # per second, read from memory


def ceilings(dtype: str) -> Ceilings:
    """The ceilings of the default device, for products of `dtype`."""
    device = jax.devices()[0]
    side = SIDE.get(device.platform, 8192)
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    words = jnp.ones(READ.get(device.platform, 1 << 32) // 4, jnp.float32)
    read = jax.jit(lambda a: jnp.sum(a))
    return Ceilings(
        device=device.device_kind,
        flops=2 * side**3 / _fastest(lambda: product(matrix)),
        bytes=words.nbytes / _fastest(lambda: read(words)),
    )


def _fastest(call: Callable[[], jax.Array]) -> float:
    call().block_until_ready()
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call().block_until_ready()
        took.append(time.perf_counter() - began)
    return min(took)
