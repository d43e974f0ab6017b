"""How does a process come by a program that another one traced, without tracing it again?

Tracing and lowering are Python's work, and took a warm start longer than to load what was compiled
of it. So what a function lowers to (StableHLO, by `jax.export`) is kept under a digest of all that
it depends on: these files, the versions beneath, JAX's settings, the machine's units, and what is
given to it but for the numbers in its arrays.

A process whose functions are not those of the files must keep nothing: no digest would tell.
"""

import functools
import hashlib
import sys
import zlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import mlir

from scalezero.nets.cpu import units

BENEATH = ("jax", "jaxlib", "equinox", "optax", "numpy")
PACKAGE = Path(__file__).parents[1]


@runtime_checkable
class Cache(Protocol):
    """Where bytes are kept by name."""

    def get(self, key: str) -> bytes | None:
        """What was put there, if anything was."""

    def put(self, key: str, value: bytes) -> None:
        """Keep `value`, whole or not at all."""


class Shelf(NamedTuple):
    """Where programs are kept, and of which source."""

    cache: Cache
    source: str


shelf: Shelf | None = None  # without one every function is traced; `keep` sets it for the process


def keep(cache: Cache) -> None:
    """From now on keep in `cache` what is traced, and take from it what was."""
    global shelf
    shelf = Shelf(cache, _source())


def traced_once[**Given, Model, Plain](
    like: Callable[..., Model],
) -> Callable[[Callable[Given, tuple[Model, Plain]]], Callable[Given, tuple[Model, Plain]]]:
    """For a function below a `jit`, whose program is taken from where programs are kept.

    Args:
        like: Has the structure of what the function gives first, made of its arguments. What the
            function gives second is arrays in plain containers.
    """

    def decorate(
        function: Callable[Given, tuple[Model, Plain]],
    ) -> Callable[Given, tuple[Model, Plain]]:
        @functools.wraps(function)
        def through(*args: Given.args, **kwargs: Given.kwargs) -> tuple[Model, Plain]:
            if shelf is None or shelf.source != _source():  # as may be what was imported
                return function(*args, **kwargs)
            arrays, rest = eqx.partition((args, kwargs), eqx.is_array)
            leaves, tree = jax.tree.flatten(arrays)
            shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
            name = _name(function, shelf.source, tree, rest, shapes)
            if name is None:
                return function(*args, **kwargs)

            def flat(*leaves: jax.Array) -> tuple[list[jax.Array], Plain]:
                args, kwargs = eqx.combine(jax.tree.unflatten(tree, leaves), rest)
                model, plain = function(*args, **kwargs)
                return jax.tree.leaves(eqx.filter(model, eqx.is_array)), plain

            program = _program(shelf.cache, name, flat, shapes)
            given = _call.bind(*leaves, program=program)
            made, plain = jax.tree.unflatten(program.out_tree, given)
            arrays, rest = eqx.partition(like(*args, **kwargs), eqx.is_array)
            return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), made), rest), plain

        return through

    return decorate


# As `Exported.call`, by which JAX would commit results to a device and compile for these anew.
_call = Primitive("traced_once")
_call.multiple_results = True
_call.def_abstract_eval(lambda *_, program: program.out_avals)
mlir.register_lowering(
    _call,
    mlir.lower_fun(
        lambda *leaves, program: jax.tree.leaves(program.call(*leaves)), multiple_results=True
    ),
)


def _program(
    cache: Cache,
    name: str,
    function: Callable[..., Any],
    shapes: Sequence[jax.ShapeDtypeStruct],
) -> export.Exported:
    """`function` for arrays of such shapes, from the cache if it is there; else it goes there."""
    if (kept := cache.get(name)) is not None:
        try:
            return export.deserialize(bytearray(zlib.decompress(kept)))
        except zlib.error:  # spoilt
            pass
    program = export.export(jax.jit(function))(*shapes)
    cache.put(name, zlib.compress(program.serialize()))
    return program


def _name(
    function: Callable[..., Any],
    source: str,
    tree: Any,
    rest: Any,
    shapes: Sequence[jax.ShapeDtypeStruct],
) -> str | None:
    """What a program is called; without a name where something tells of itself but its address."""
    text = "\n".join(
        (
            f"{function.__module__}.{function.__qualname__} {source} {sys.version}",
            *(f"{each} {version(each)}" for each in BENEATH),
            f"{jax.default_backend()} {units()}",
            str(sorted(jax.config.values.items())),
            str(tree),
            str(jax.tree.structure(rest)),
            str(jax.tree.leaves(rest)),
            str(shapes),
        )
    )
    return None if " at 0x" in text else f"traced-{hashlib.sha256(text.encode()).hexdigest()}"


def _source() -> str:
    """A digest of the package's files."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)} ".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
