"""Which number does a text have? Every text of a run gets one, in order of first appearance.

Replays and observations hold these numbers; the texts themselves are kept here, once each, and in
a file of JSON strings, one a line. Numbers never change: a checkpoint stores how many texts there
were, and a restored book goes on counting from there.
"""

import json
from itertools import islice
from pathlib import Path

import numpy as np

from scalezero.data.growing import FileDamaged, extend
from scalezero.envs.spec import NOTHING, Page

ENCODING = ("utf-8", "surrogatepass")  # what a game wrote in broken bytes comes back as it was


class Book:
    """Every text so far, by its number."""

    def __init__(self, file: Path | None = None) -> None:
        """An empty book. Without a `file` it cannot be saved."""
        self.file = file
        self.texts: list[str] = []
        self.asked = 0  # texts whose number was wanted, since this process began
        self.met = 0  # of these, the texts that had a number already
        self._numbers: dict[str, int] = {}
        self._saved, self._size = 0, 0  # the texts in the file, and their bytes

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.texts)

    def number(self, text: str) -> int:
        """The number of `text`; a new one if it was never met."""
        number = self._numbers.setdefault(text, len(self.texts))
        self.asked += 1
        if number < len(self.texts):
            self.met += 1
        else:
            self.texts.append(text)
        return number

    def read(self, pages: np.ndarray, choices: int) -> np.ndarray:
        """What the environments of a `Text` task show, as numbers: `int32[env, 1 + choices]`.

        Args:
            pages: `object[env]`, each a `Page`.
            choices: The most actions that a page of the task lists.
        """
        numbers = np.full((len(pages), 1 + choices), NOTHING, np.int32)
        for row, page in zip(numbers, pages, strict=True):
            if len(page.actions) > choices:
                raise ValueError(_too_long(page, choices))
            row[: 1 + len(page.actions)] = [
                self.number(text) for text in (page.text, *page.actions)
            ]
        return numbers

    def save(self) -> int:
        """Write the texts that are new to the file; how many it holds, for `restore`."""
        if self.file is None:
            raise ValueError("this book has no file to be saved in; make it with one")
        if self._saved < len(self.texts) or not self._saved:
            self._size = extend(self.file, self._size, _lines(self.texts[self._saved :]))
            self._saved = len(self.texts)
        return self._saved

    def restore(self, count: int) -> None:
        """Fill a fresh book with the first `count` texts of its file, and go on from there."""
        if self.file is None or self.texts:
            raise ValueError("only a fresh book with a file can be restored")
        if not self.file.is_file():
            raise FileDamaged(f"{self.file}: the texts of this run are missing; bring them back")
        with self.file.open("rb") as lines:
            for line in islice(lines, count):
                text = _text(line)
                if text is None or text in self._numbers:
                    raise FileDamaged(
                        f"{self.file}: line {len(self.texts) + 1} is damaged; bring back the file "
                        "as this run wrote it"
                    )
                self._numbers[text] = len(self.texts)
                self.texts.append(text)
                self._size += len(line)
        self._saved = len(self.texts)
        if self._saved < count:
            raise FileDamaged(
                f"{self.file}: holds {self._saved:,} texts, but the checkpoint counts {count:,}; "
                "bring back the file as this run wrote it"
            )


def _lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps(t, ensure_ascii=False).encode(*ENCODING) + b"\n" for t in texts)


def _text(line: bytes) -> str | None:
    """The text in a line of the file; None for no whole line with one."""
    try:
        text = json.loads(line.decode(*ENCODING))
    except ValueError:
        return None
    return text if isinstance(text, str) and line.endswith(b"\n") else None


def _too_long(page: Page, choices: int) -> str:
    return (
        f"a page lists {len(page.actions)} actions, but its task has at most {choices} choices; "
        f"the environment must leave some out: {page.text[:60]!r}"
    )
