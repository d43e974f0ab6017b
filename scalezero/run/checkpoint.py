"""How a run is saved and brought back: everything with state, in one atomic step.

A checkpoint is the learner's arrays, each under its path in the tree, and a small JSON of
counters, log lengths, random states and the names of the replay's shards. Orbax writes it aside and
renames it, so a kill at any moment leaves the one before whole. Loading executes nothing: names,
shapes and types are compared before anything is read, and a difference is reported by name.

On a CPU saving copies no array, and loading one at a time.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from scalezero.data.journal import Journal
from scalezero.data.replay import Replay
from scalezero.run.folder import RunError

ARRAYS, NOTES = "arrays", "notes"


class Checkpoints:
    """The checkpoints of one run, newest kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Use `folder`, keeping the newest `keep`."""
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what we raise
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        )
        # What has learnt is noise to a compressor: 7 % smaller, for most of the time.
        numpy = ocp.type_handlers.create_type_handler_registry((np.ndarray, _Arrays()))
        arrays = ocp.PyTreeCheckpointHandler(type_handler_registry=numpy, use_compression=False)
        handlers = {ARRAYS: arrays, NOTES: ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
        """Write `tree`'s arrays and `notes`; a second save at the same step does nothing.

        Raises:
            RunError: They cannot be written; earlier checkpoints are whole.
        """
        if step == self.latest:
            return
        arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
        args = ocp.args.Composite(
            **{ARRAYS: ocp.args.PyTreeSave(arrays), NOTES: ocp.args.JsonSave(notes)}
        )
        try:
            self._manager.save(step, args=args)
        except (OSError, ValueError) as error:  # Orbax reports a full disk as a ValueError
            raise RunError(
                f"{self.folder / str(step)}: this checkpoint cannot be written "
                f"({_first_line(error)}); free some room and give the same command: it goes on "
                f"from {'the start' if self.latest is None else self.latest}"
            ) from error

    def notes(self, step: int) -> dict[str, Any]:
        """The notes saved at `step`."""
        with self._naming(step):
            args = ocp.args.Composite(**{NOTES: ocp.args.JsonRestore()})
            return self._manager.restore(step, args=args)[NOTES]

    def restore[Tree: PyTree](self, step: int, tree: Tree, *, under: str = "") -> Tree:
        """`tree` with every array replaced by the one saved under its name.

        Args:
            step: Of the checkpoint.
            tree: What to fill; the shapes and types of its arrays are enough (`jax.eval_shape`).
            under: Only names that begin so are read, and `tree` has them without it.

        Raises:
            RunError: The files are unreadable, or a name, a shape or a type differs.
        """
        here = _described(tree)
        with self._naming(step):
            metadata = self._manager.item_metadata(step)[ARRAYS]
            if metadata is None:
                raise ValueError(f"nothing describes its {ARRAYS}")
        kept = {name: like for name, like in metadata.tree.items() if name.startswith(under)}
        found = {name.removeprefix(under): like for name, like in kept.items()}
        _require_same(self.folder / str(step), here, found)
        with self._naming(step):
            part = ocp.args.PyTreeRestore(item=kept, partial_restore=True)
            saved = self._manager.restore(step, args=ocp.args.Composite(**{ARRAYS: part}))[ARRAYS]

        def put(path: Any, leaf: Any) -> Any:
            if not _is_shaped(leaf):
                return leaf
            array = saved.pop(under + _name(path))
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(array)
            return jax.numpy.array(array)  # a copy: learning will donate this memory

        return jax.tree_util.tree_map_with_path(put, tree)

    def sweep(self) -> None:
        """Delete what a save left that was killed before its end; for the one who writes here."""
        for scrap in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(scrap, ignore_errors=True)

    def all_notes(self) -> list[dict[str, Any]]:
        """The notes of every checkpoint kept."""
        return [self.notes(step) for step in self._manager.all_steps()]

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    @contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Turn whatever reading a damaged file raises into one sentence."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            older = [other for other in self._manager.all_steps() if other != step]
            hint = f" to go on from {max(older)}" if older else ""
            raise RunError(
                f"{self.folder / str(step)}: this checkpoint cannot be read "
                f"({_first_line(error)}); move it away{hint}"
            ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition('\n')[0][:200]}"


class _Arrays(ocp.type_handlers.NumpyHandler):
    """How Orbax, which wants a subclass of its own, writes and reads arrays here.

    It writes without a copy; and reading that fails has waited for every other read first, whose
    failure would be printed by Python otherwise, when nobody is left to hear of it.
    """

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)  # `save` returns when all is written

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        read = super().metadata
        return await _each(read([info]) for info in infos)

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[ocp.RestoreArgs] | None = None
    ) -> Sequence[np.ndarray]:
        pairs = zip(infos, args or [None] * len(infos), strict=True)
        read = super().deserialize
        return await _each(read([info], how and [how]) for info, how in pairs)


async def _each(reads: Iterable[Awaitable[Sequence[Any]]]) -> list[Any]:
    """What each read, which is of one array, has found; the first error once all have ended."""
    ended = await asyncio.gather(*reads, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result
    return [array for (array,) in ended]


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Every array of `tree` under its path; random keys as the numbers they consist of."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if eqx.is_array(leaf):
            is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            named[_name(path)] = jax.random.key_data(leaf) if is_key else leaf
    return named


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_shaped(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _described(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and type of every array that `named_leaves` finds, in the order of the tree."""
    shaped = eqx.filter(tree, _is_shaped)
    sorted_by_name = jax.eval_shape(named_leaves, shaped)
    names = (_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shaped))
    return {name: sorted_by_name[name] for name in names}


def _require_same(path: Path, here: dict[str, Any], found: dict[str, Any]) -> None:
    for name in [*here, *found]:
        if name not in found:
            raise RunError(f"{path}: has no {name}, which this config's agent has")
        if name not in here:
            raise RunError(f"{path}: has {name}, which this config's agent has not")
        ours, saved = here[name], found[name]
        if ours.shape != saved.shape or ours.dtype != saved.dtype:
            raise RunError(
                f"{path}: {name} was saved as {saved.dtype}{list(saved.shape)}, but this config's "
                f"agent has {ours.dtype}{list(ours.shape)}"
            )


def journals_of(folder: Path, replays: Sequence[Replay]) -> tuple[Journal, ...]:
    """A journal for each task's replay, in a folder of its own."""
    return tuple(Journal(folder / replay.task.name.replace("/", "-")) for replay in replays)
