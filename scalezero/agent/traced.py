"""How does a process come by a program that another one traced, without tracing it again?

Tracing and lowering are Python's work, and took a warm start longer than to load what was compiled
of it. So what a function lowers to (StableHLO, by `jax.export`) is kept under a digest of all that
it depends on: of what surrounds it (`Shelf.about`), and of what is given to it but for the numbers
in its arrays.
"""

import functools
import hashlib
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import mlir


@runtime_checkable
class Cache(Protocol):
    """Where bytes are kept by name."""

    def get(self, key: str) -> bytes | None:
        """What was put there, if anything was."""

    def put(self, key: str, value: bytes) -> None:
        """Keep `value`, whole or not at all."""


class Shelf(NamedTuple):
    """Where programs are kept, for this process."""

    cache: Cache
    about: Callable[[], str | None]  # source, versions, settings, machine; None: keep nothing now


shelf: Shelf | None = None  # the one global of the agent: who starts the process may set it


def traced_once[**Given, Model, Plain](
    like: Callable[..., Model],
) -> Callable[[Callable[Given, tuple[Model, Plain]]], Callable[Given, tuple[Model, Plain]]]:
    """For a function below a `jit`: its program is taken from the shelf, if there is one.

    Args:
        like: Has the structure of what the function gives first, made of its arguments. What the
            function gives second is arrays in plain containers.
    """

    def decorate(
        function: Callable[Given, tuple[Model, Plain]],
    ) -> Callable[Given, tuple[Model, Plain]]:
        @functools.wraps(function)
        def through(*args: Given.args, **kwargs: Given.kwargs) -> tuple[Model, Plain]:
            about = shelf.about() if shelf else None
            if shelf is None or about is None:
                return function(*args, **kwargs)
            arrays, static = eqx.partition((args, kwargs), eqx.is_array)
            leaves, tree = jax.tree.flatten(arrays)
            wanted, fixed = eqx.partition(like(*args, **kwargs), eqx.is_array)

            def flat(*leaves: jax.Array) -> tuple[list[jax.Array], Plain]:
                args, kwargs = eqx.combine(jax.tree.unflatten(tree, leaves), static)
                model, plain = function(*args, **kwargs)
                made, other = eqx.partition(model, eqx.is_array)
                if jax.tree.structure((made, other)) != jax.tree.structure((wanted, fixed)):
                    raise TypeError(f"{function.__qualname__}: does not give what it is like")
                return jax.tree.leaves(made), plain

            name = _name(function, about, static, tree, leaves)
            program = name and _program(shelf.cache, name, flat, leaves)
            if not program:
                return function(*args, **kwargs)
            results = _call.bind(*leaves, program=program)
            made, plain = jax.tree.unflatten(program.out_tree, results)
            made = jax.tree.unflatten(jax.tree.structure(wanted), made)
            return eqx.combine(made, fixed), plain

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
    cache: Cache, name: str, function: Callable[..., Any], leaves: Sequence[jax.Array]
) -> export.Exported | None:
    """`function` for such arrays, from the cache if it is there; else it goes there.

    None if it cannot be written down, as with a `jax.debug.print` in it.
    """
    try:
        if (kept := cache.get(name)) is not None:
            return export.deserialize(bytearray(zlib.decompress(kept)))
    except (OSError, zlib.error):  # cannot be read, or is spoilt
        pass
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    try:
        program = export.export(jax.jit(function))(*shapes)
        written = zlib.compress(program.serialize())
    except (NotImplementedError, ValueError):
        return None
    try:
        cache.put(name, written)
    except OSError as error:
        warnings.warn(f"what was traced cannot be kept for the next start: {error}", stacklevel=2)
    return program


def _name(
    function: Callable[..., Any], about: str, static: Any, tree: Any, leaves: Sequence[jax.Array]
) -> str | None:
    """What a program is called; None if something that is given does not tell all of itself."""
    types = [jax.typeof(leaf) for leaf in leaves]
    text = "\n".join(
        (
            f"{function.__module__}.{function.__qualname__}",
            about,
            str(tree),
            str(jax.tree.structure(static)),
            str(jax.tree.leaves(static)),
            str([(each.shape, each.dtype) for each in types]),
        )
    )
    # Of a function there is the address alone, which another may have next.
    if " at 0x" in text or any(each.weak_type for each in types):
        return None
    return f"traced-{hashlib.sha256(text.encode()).hexdigest()}"
