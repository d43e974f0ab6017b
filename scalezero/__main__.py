"""The command `scalezero`, which is `python -m scalezero` too."""

import contextlib
import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"  # what glibc reads when a process starts, and never again
STARTED = "SCALEZERO_STARTED"  # once again already, should the other not last
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def command() -> int:
    """Run the command line of this process; its exit code."""
    _ask_for_huge_pages()
    from scalezero.cli import main  # not before: it takes longer to import than to start again

    return main()


def _ask_for_huge_pages() -> None:
    """Start again with memory in huge pages, if Linux has them for those who ask.

    An update takes and gives back much memory; by small pages that costs it about a tenth. Whoever
    has set `GLIBC_TUNABLES`, even to nothing, is left alone.
    """
    once = {TUNABLES, STARTED} & set(os.environ)
    if once or not sys.platform.startswith("linux") or not sys.executable:
        return
    with contextlib.suppress(OSError):  # where it cannot be, small pages do
        if "[madvise]" in HUGE_PAGES.read_text():
            variables = os.environ | {TUNABLES: "glibc.malloc.hugetlb=1", STARTED: "again"}
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)


if __name__ == "__main__":
    sys.exit(command())
