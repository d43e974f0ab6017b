"""Where is what JAX traces and compiles kept, to be shared, whatever is killed at any moment?"""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
from jax._src.lru_cache import LRUCache

from scalezero.agent import traced
from scalezero.envs import recall

ASIDE = ".new-"  # how folders begin in which programs are written, beside those that are whole
STALE_SECONDS = 3600.0  # after which such a folder was left by a process that was killed
LEAST = "jax_persistent_cache_min_compile_time_secs"  # of a program, to be kept
LEAST_OF_JAX = 1.0

_put = LRUCache.put


def keep() -> None:
    """Keep what this process compiles, from its first program on, for any process after it.

    What JAX was told (`JAX_COMPILATION_CACHE_DIR`) comes first. JAX writes a program where others
    read it already, and never again: one that two first starts wrote at once, or that a kill cut
    short, every later start would warn of and compile. So programs are put there whole.
    """
    folder = jax.config.jax_compilation_cache_dir
    if folder is None:
        folder = str(recall.folder("jax"))
        jax.config.update("jax_compilation_cache_dir", folder)
    if LEAST.upper() not in os.environ and getattr(jax.config, LEAST) == LEAST_OF_JAX:
        jax.config.update(LEAST, 0)
    LRUCache.put = _put_whole
    if folder:  # without a name JAX keeps nothing
        _sweep(Path(folder))


def keep_traced() -> None:
    """`keep`, and keep what is traced too: for processes whose functions are those of our files."""
    keep()
    folder = jax.config.jax_compilation_cache_dir
    if folder and jax.config.jax_enable_compilation_cache and "://" not in folder:
        traced.keep(LRUCache(folder, max_size=jax.config.jax_compilation_cache_max_size))


def _sweep(folder: Path) -> None:
    """Delete what killed processes left."""
    for scrap in folder.glob(f"{ASIDE}*"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - scrap.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(scrap, ignore_errors=True)


def _put_whole(self: LRUCache, key: str, value: bytes) -> None:
    """Add the program `value` under `key`, in place of one that was spoilt; never a part of it."""
    if self.eviction_enabled or "://" in str(self._path):  # locked by JAX, or not a folder
        return _put(self, key, value)
    with TemporaryDirectory(dir=self._path, prefix=ASIDE) as scratch:
        _put(LRUCache(scratch, max_size=-1), key, value)
        for file in Path(scratch).iterdir():
            file.replace(Path(self._path, file.name))
    return None
