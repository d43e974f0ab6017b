import pytest

from scalezero.config import ModelSettings
from scalezero.run import precision
from scalezero.run.precision import WIDE, multiplies_bfloat16, precision_of


@pytest.mark.parametrize(
    ("backend", "embed", "units", "expected"),
    [
        ("gpu", 64, False, "bfloat16"),
        ("cpu", WIDE, True, "bfloat16"),
        ("cpu", WIDE - 4, True, "float32"),
        ("cpu", WIDE, False, "float32"),
    ],
)
def test_automatic_precision_follows_the_machine(monkeypatch, backend, embed, units, expected):
    monkeypatch.setattr(precision.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: units)
    assert precision_of(ModelSettings(embed=embed, heads=2)) == expected


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_what_is_asked_for_is_taken(monkeypatch, asked):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: asked == "float32")
    assert precision_of(ModelSettings(embed=256, precision=asked)) == asked


def test_a_machine_that_says_nothing_of_its_units_has_none(monkeypatch, tmp_path):
    told = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "Path", lambda _: told)
    multiplies_bfloat16.cache_clear()
    assert not multiplies_bfloat16()
    told.write_text("flags\t\t: fpu avx512f amx_bf16 amx_tile\n")
    multiplies_bfloat16.cache_clear()
    assert multiplies_bfloat16()
    multiplies_bfloat16.cache_clear()
