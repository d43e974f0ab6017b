import pytest

from scalezero.config import ModelSettings
from scalezero.run import precision
from scalezero.run.precision import WIDE, precision_of


@pytest.mark.parametrize(
    ("backend", "embed", "units", "expected"),
    [
        ("gpu", 64, None, "bfloat16"),
        ("cpu", WIDE, "amx", "bfloat16"),
        ("cpu", WIDE, "avx512", "bfloat16"),
        ("cpu", WIDE - 4, "amx", "float32"),
        ("cpu", WIDE, None, "float32"),
    ],
)
def test_automatic_precision_follows_the_machine(monkeypatch, backend, embed, units, expected):
    monkeypatch.setattr(precision.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(precision, "units", lambda: units)
    assert precision_of(ModelSettings(embed=embed, heads=2)) == expected


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_what_is_asked_for_is_taken(monkeypatch, asked):
    monkeypatch.setattr(precision, "units", lambda: "amx" if asked == "float32" else None)
    assert precision_of(ModelSettings(embed=256, precision=asked)) == asked
