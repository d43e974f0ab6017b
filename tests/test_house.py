"""The rules of the house that a machine can check."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalezero.axes import AXES

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "scalezero").rglob("*.py"))
FILES = [*PACKAGE, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
RESULTS = [file for place in ("benchmarks", "docs") for file in (ROOT / place).rglob("*.json*")]
ARRAYS = {"Array", "Bool", "Float", "Inexact", "Int", "Num", "Shaped", "UInt", "UInt8", "UInt32"}
JAX = {"jax", "jaxlib", "equinox", "optax", "orbax", "chex"}

# What each part may import of the rest; a part may always import itself.
ARROWS = {
    "axes": (),
    "config": (),
    "envs": (),
    "data": ("envs.spec",),
    "nets": (),
    "agent": ("nets", "envs.spec", "config"),
    "report": ("envs.spec", "envs.catalog"),
    "configure": ("config", "envs"),
    "run": ("agent", "nets", "data", "envs", "config", "configure"),
    "bench": ("agent", "nets", "data", "envs", "run", "config", "configure"),
    "cli": ("run", "bench", "data.growing", "envs", "config", "configure"),
    "__main__": ("cli",),
    "__init__": ("run", "config", "configure"),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(path: Path) -> str:
    return path.relative_to(ROOT / "scalezero").with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module="scalezero"):
                yield from (f"scalezero.{alias.name}" for alias in node.names)
            case ast.ImportFrom(module=str()):
                yield node.module


def axes(path: Path) -> Iterator[str]:
    """The named axes in the jaxtyping annotations of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Subscript(
                value=ast.Name(id=kind),
                slice=ast.Tuple(elts=[_, ast.Constant(value=str() as text)]),
            ) if kind in ARRAYS:
                for axis in text.split():
                    word = axis.lstrip("*#?").partition("=")[0]
                    yield from re.findall(r"[a-z]\w*", word)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_short_and_finished(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    marks = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    assert not [line for line in lines if any(mark in line for mark in marks)]


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_imports_follow_the_arrows(path):
    allowed = (part(path), *ARROWS[part(path)])
    for target in imports(path):
        if target.startswith("scalezero."):
            local = target.removeprefix("scalezero.")
            assert any(local == a or local.startswith(f"{a}.") for a in allowed), target


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_worlds_memory_and_reports_need_no_jax(path):
    if part(path) in ("envs", "data", "report", "config", "configure"):
        assert not JAX & {target.partition(".")[0] for target in imports(path)}


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_axes_are_of_the_vocabulary(path):
    assert set(axes(path)) <= set(AXES)


@pytest.mark.parametrize("path", PACKAGE, ids=name)
def test_every_module_imports(path):
    importlib.import_module(module(path))


def test_results_name_no_path_of_the_machine_they_come_from():
    for path in RESULTS:
        assert not re.findall(r'"(?:/|~|[A-Za-z]:\\\\)[^"]*"', path.read_text()), path
