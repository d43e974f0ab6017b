import gc
import os

import jax
import pytest

# LLVM's optimiser is not what is tested, and half of the time would go to it. XLA's own passes run
# as ever. CI runs some laws of single bits as users compile too: `make test-as-compiled`.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)


@pytest.hookimpl(trylast=True)  # after jaxtyping's, which checks what is imported after it
def pytest_configure():
    """Let the workers share what they compile, as processes of users do."""
    from scalezero.run import compiled

    compiled.keep()


@pytest.fixture
def keys():
    """An endless supply of fresh PRNG keys: `next(keys)`."""

    def stream():
        key = jax.random.key(0)
        while True:
            key, fresh = jax.random.split(key)
            yield fresh

    return stream()


@pytest.fixture(autouse=True)
def _keep_nothing_traced(monkeypatch):
    """Tests replace functions, which no name of a kept program would tell."""
    from scalezero.run import compiled

    monkeypatch.setattr(compiled, "keep_traced", lambda: None)


@pytest.fixture(scope="module", autouse=True)
def _forget_what_was_compiled():
    """Programs stay mapped into memory while they are cached, and Linux allows 65,530 mappings."""
    yield
    jax.clear_caches()
    gc.collect()
