import importlib.util
import sys
from pathlib import Path

import pytest

PROGRAM = """HloModule jit_call, is_scheduled=true

%inner (a.1: f32[2]) -> f32[2] {
  %a.1 = f32[2]{0} parameter(0)
  ROOT %fusion.9 = f32[2]{0} fusion(%a.1), kind=kLoop, calls=%what
}

%few (b.1: (f32[2], s32[])) -> f32[2] {
  %b.1 = (f32[2]{0}, /*index=1*/s32[]) parameter(0)
  %own.1 = f32[2]{0} get-tuple-element(%b.1), index=0
  ROOT %call.1 = f32[2]{0} call(%own.1), to_apply=%inner
}

%many (c.1: f32[2]) -> f32[2] {
  %c.1 = f32[2]{0} parameter(0)
  %copy.1 = f32[2]{0} copy(%c.1)
  %copy.2 = f32[2]{0} copy(%copy.1)
  ROOT %fusion.1 = f32[2]{0} fusion(%copy.2), kind=kInput, calls=%what
}

%body (d.1: (f32[2], s32[])) -> (f32[2], s32[]) {
  %d.1 = (f32[2]{0}, s32[]) parameter(0)
  %cond.1 = f32[2]{0} conditional(%x, %y, %z), branch_computations={%few, %many}
  %start.1 = ((f32[2]{0}), f32[2]{0}) fusion-start(%cond.1), kind=kLoop, calls=%what
  %done.1 = f32[2]{0} fusion-done(%start.1)
  ROOT %tuple.1 = (f32[2]{0}, s32[]) tuple(%done.1, %n)
}

%asks (e.1: (f32[2], s32[])) -> pred[] {
  %e.1 = (f32[2]{0}, s32[]) parameter(0)
  ROOT %fusion.2 = pred[] fusion(%e.1), kind=kLoop, calls=%what
}

ENTRY %main.1 (f.1: f32[2]) -> (f32[2], s32[]) {
  %f.1 = f32[2]{0} parameter(0)
  %dot.1 = (f32[2]{0}, s8[64]{0}) custom-call(%f.1), custom_call_target="__cublas$gemm"
  %two.1 = pred[] conditional(%p, %q, %r), true_computation=%few, false_computation=%few
  %loop.1 = (f32[2]{0}, s32[]) while(%t), condition=%asks, body=%body
  ROOT %loop.2 = (f32[2]{0}, /*index=1*/s32[]) while(%loop.1), condition=%asks, body=%body, \
backend_config={"known_trip_count":{"n":"8"}}
}
"""


@pytest.fixture
def program():
    file = Path(__file__).parents[2] / "benchmarks" / "program.py"
    spec = importlib.util.spec_from_file_location("program", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_what_a_program_launches_is_counted(program):
    whole = program.read(PROGRAM)
    assert (whole.kernels, whole.waits) == (2, 1)  # the product, and a branch
    unknown, known = whole.loops
    assert (unknown.kernels, unknown.waits, unknown.rounds) == (3 + 1 + 1, 1 + 1, None)
    assert (known.kernels, known.waits, known.rounds) == (3 + 1, 1, 8)
    assert list(whole.lines()) == [
        "2 kernels, 1 waits",
        "  5 kernels, 2 waits × each round",
        "  4 kernels, 1 waits × 8",
    ]
