import gc
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from scalezero.run.checkpoint import ARRAYS, NOTES, Checkpoints, named_leaves
from scalezero.run.folder import RunError

SIZE = 1 << 20  # elements of each large array


def tree(**more):
    return {
        "world": {"weights": jnp.arange(SIZE, dtype=jnp.float32), "key": jax.random.key(3)},
        "target": [jnp.ones(SIZE), jnp.int32(7)],
        "name": "a tree",
        **more,
    }


def same(one, other):
    one, other = named_leaves(one), named_leaves(other)
    assert list(one) == list(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path, keep=2)
    yield made
    made.close()


def test_what_was_saved_comes_back_into_shapes_alone(checkpoints):
    checkpoints.save(1, tree(), {"turns": 5})
    shapes = jax.eval_shape(lambda: {**tree(), "name": None})
    back = checkpoints.restore(1, {**shapes, "name": "another"})
    assert back["name"] == "another"
    same(back, tree())
    assert checkpoints.notes(1) == {"turns": 5}


def test_a_part_is_read_by_the_beginning_of_its_names(checkpoints):
    checkpoints.save(1, tree(), {})
    same(checkpoints.restore(1, tree()["world"], under="world."), tree()["world"])


@pytest.mark.parametrize("missing", ["_METADATA", "manifest.ocdbt", "d"])
def test_a_checkpoint_that_lacks_a_file_cannot_be_read(checkpoints, missing):
    checkpoints.save(1, tree(), {})
    checkpoints.save(2, tree(), {})
    lost = checkpoints.folder / "2" / ARRAYS / missing
    lost.rename(lost.with_name("lost"))
    with pytest.raises(RunError, match=r"2: this checkpoint cannot be read .* to go on from 1"):
        checkpoints.restore(2, tree())


def test_of_arrays_that_cannot_be_read_only_one_is_told(checkpoints, monkeypatch, caplog):
    unheard = []
    monkeypatch.setattr("sys.unraisablehook", unheard.append)
    checkpoints.save(1, tree(), {})
    data = checkpoints.folder / "1" / ARRAYS / "d"
    for _ in range(20):  # which of them fails first is chance
        data.rename(data.with_name("lost"))
        with pytest.raises(RunError, match="1: this checkpoint cannot be read"):
            checkpoints.restore(1, tree())
        data.with_name("lost").rename(data)
        same(checkpoints.restore(1, tree()), tree())
    gc.collect()
    assert not unheard and not caplog.records


def test_saving_copies_no_array(checkpoints):
    held = tree()
    checkpoints.save(1, held, {})  # what is imported on the way does not count
    tracemalloc.start()
    checkpoints.save(2, held, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < held["target"][0].nbytes / 2


def test_a_checkpoint_that_an_earlier_version_compressed_is_read(tmp_path):
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(tree()).items()}
    with ocp.CheckpointManager(tmp_path, item_names=(ARRAYS, NOTES)) as earlier:
        saved = {ARRAYS: ocp.args.StandardSave(arrays), NOTES: ocp.args.JsonSave({"turns": 5})}
        earlier.save(1, args=ocp.args.Composite(**saved))
    now = Checkpoints(tmp_path, keep=2)
    same(now.restore(1, tree()), tree())
    assert now.notes(1) == {"turns": 5}
    now.close()
