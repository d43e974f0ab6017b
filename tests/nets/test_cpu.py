import pytest

from scalezero.nets import cpu


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, None),
        ("flags\t\t: fpu avx2 avx512f", None),
        ("flags\t\t: fpu avx512f avx512_bf16 clzero", "avx512"),
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", "amx"),
    ],
)
def test_units_are_those_that_the_machine_tells_of(monkeypatch, tmp_path, told, expected):
    file = tmp_path / "cpuinfo"
    if told:
        file.write_text(f"{told}\n")
    monkeypatch.setattr(cpu, "CPUINFO", file)
    assert cpu.units.__wrapped__() == expected
