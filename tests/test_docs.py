"""What the documents say must be so."""

import re
from pathlib import Path

import pytest

from scalezero import configure
from scalezero.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every `scalezero …` line in the documents' shell blocks."""
    blocks = [b for page in PAGES for b in re.findall(r"```bash\n(.*?)```", text(page), re.S)]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("scalezero ")]


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_documents_are_understood(command):
    words = [word.strip("'\"") for word in command.split()[1:]]
    options, flags = parse(words)
    if "preset" in vars(options) and not (options.config or options.run):
        own = [name for name in options.tasks or () if ":" not in name]  # not a reader's package
        configure.tasks(
            configure.resolve(
                preset=options.preset,
                tasks=own or ["toy/catch"] * (not options.preset),
                flags=flags,
            )
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", text(page)):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_settings_named_in_the_documents_exist(page):
    sections = {key.partition(".")[0] for key, _ in configure.settings()}
    known = {key for key, _ in configure.settings()}
    for name in re.findall(r"`(?:--)?((?:\w+\.)+\w+)(?: = [^`]*)?`", text(page)):
        head, _, last = name.partition(".")
        if head in sections and last != "py":
            assert name in known, name
    for path in re.findall(r"`(scalezero/[\w/.]+)`", text(page)):
        assert (ROOT / path).exists(), path


def test_every_preset_is_in_the_readme():
    readme = text(ROOT / "README.md")
    for preset in configure.presets():
        assert preset.removesuffix("-small") in readme
