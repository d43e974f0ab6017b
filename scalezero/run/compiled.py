"""Where is what JAX traces and compiles kept, to be shared, whatever is killed at any moment?"""

import hashlib
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import equinox
import jax
import jaxlib
import numpy
import optax
import psutil
from jax._src.lru_cache import LRUCache
from jax.extend.backend import get_backend

from scalezero.agent import traced
from scalezero.envs import recall
from scalezero.nets.cpu import units

ASIDE = ".new-"  # how folders begin in which programs are written, beside those that are whole
STALE_SECONDS = 3600.0  # after which such a folder was left by a process that was killed
LEAST = "jax_persistent_cache_min_compile_time_secs"  # of a program, to be kept
LEAST_OF_JAX = 1.0
BENEATH = (jax, jaxlib, equinox, optax, numpy)  # what traces, beside our own files
PACKAGE = Path(__file__).parents[1]
LOOKED_INTO = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit")  # programs, op by op

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
    if _is_folder(folder):
        _sweep(Path(folder))


def keep_traced() -> None:
    """`keep`, and keep what is traced too: for processes whose functions are those of our files.

    Whoever calls from Python may have replaced one, which no digest would tell.
    """
    keep()
    folder = jax.config.jax_compilation_cache_dir
    if jax.config.jax_enable_compilation_cache and _is_folder(folder):
        with suppress(OSError, RuntimeError):  # JAX will say why it cannot be had
            cache = LRUCache(folder, max_size=jax.config.jax_compilation_cache_max_size)
            traced.shelf = traced.Shelf(cache, _about)


def _about() -> str | None:
    """All that a program depends on but for its arguments; None where it cannot be told."""
    source = _source(PACKAGE, since=psutil.Process().create_time())
    settings = jax.config.values
    if source is None or any(settings[name] for name in LOOKED_INTO):
        return None
    versions = [f"{each.__name__} {each.__version__}" for each in BENEATH]
    backend = get_backend()
    machine = f"{backend.platform} {backend.platform_version} {units()}"
    return f"{source} {sys.version} {versions} {machine} {sorted(settings.items())}"


def _source(package: Path, *, since: float) -> str | None:
    """A digest of the package's files; None if one was written `since`, or there are none.

    What was written since this process began may not be what it has imported.
    """
    digest, files = hashlib.sha256(), sorted(package.rglob("*.py"))
    try:
        for file in files:
            if file.stat().st_mtime > since:
                return None
            digest.update(f"{file.relative_to(package)} ".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError:  # one is gone already
        return None
    return digest.hexdigest() if files else None


def _is_folder(name: str | None) -> bool:
    """Whether programs are kept in a folder of this machine; without a name JAX keeps none."""
    return bool(name) and "://" not in str(name)


def _sweep(folder: Path) -> None:
    """Delete what killed processes left."""
    for scrap in folder.glob(f"{ASIDE}*"):
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - scrap.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(scrap, ignore_errors=True)


def _put_whole(self: LRUCache, key: str, value: bytes) -> None:
    """Add the program `value` under `key`, in place of one that was spoilt; never a part of it."""
    if self.eviction_enabled or not _is_folder(str(self._path)):  # JAX locks it, or cannot
        return _put(self, key, value)
    with TemporaryDirectory(dir=self._path, prefix=ASIDE) as scratch:
        _put(LRUCache(scratch, max_size=-1), key, value)
        for file in Path(scratch).iterdir():
            file.replace(Path(self._path, file.name))
    return None
