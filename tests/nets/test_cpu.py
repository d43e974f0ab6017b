import pytest

from scalezero.nets import cpu


@pytest.mark.parametrize(
    ("told", "fast", "amx"),
    [
        (None, False, False),
        ("flags\t\t: fpu avx2 avx512f", False, False),
        ("flags\t\t: fpu avx512f avx512_bf16 clzero", True, False),
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", True, True),
    ],
)
def test_units_are_those_that_the_machine_tells_of(monkeypatch, tmp_path, told, fast, amx):
    file = tmp_path / "cpuinfo"
    if told:
        file.write_text(f"{told}\n")
    monkeypatch.setattr(cpu, "TOLD", file)
    monkeypatch.setattr(cpu, "_flags", cpu._flags.__wrapped__)
    assert (cpu.multiplies_bfloat16(), cpu.has_amx()) == (fast, amx)
