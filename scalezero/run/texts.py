"""What has a run met in words, and what does its model read of them?"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from scalezero.config import Config
from scalezero.envs.spec import Task, Text


class Texts:
    """The book and the library of a run. A run without text has neither, and loads nothing."""

    def __init__(
        self,
        config: Config,
        tasks: Sequence[Task],
        folder: Path | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            config: Of the run.
            tasks: Of the run.
            folder: Where texts and embeddings outlive the process.
            say: Told what a user should know.
        """
        self.book = self._library = None
        if not any(isinstance(task.observation, Text) for task in tasks):
            return
        from scalezero.data.book import Book
        from scalezero.run.library import library

        text = config.text
        named = lambda name: None if folder is None else folder / name
        if folder is not None:
            folder.mkdir(exist_ok=True)
        self.book = Book(named("texts.jsonl"))
        self._library = library(
            self.book,
            text.trains,
            text.tokens,
            file=named("embeddings.f32"),
            capacity=text.capacity,
            say=say,
        )

    @property
    def read(self) -> Callable[[np.ndarray, int], np.ndarray] | None:
        """From pages to numbers (`Book.read`)."""
        return None if self.book is None else self.book.read

    def contents(self) -> Shaped[Array, "text content"]:
        """What stands for each number by now; texts that are new are encoded first."""
        return jnp.zeros((0, 0)) if self._library is None else self._library.sync()

    def save(self) -> tuple[int, ...]:
        """Write what is new; what `restore` needs to know."""
        if self.book is None or self._library is None:
            return ()
        return self.book.save(), self._library.save()

    def restore(self, counts: Sequence[int]) -> None:
        """Bring back what was there when `save` said `counts`."""
        if self.book is not None and self._library is not None:
            texts, embeddings = counts
            self.book.restore(texts)
            self._library.restore(embeddings)

    def metrics(self) -> dict[str, float]:
        """How many texts there are, how many of those asked for were known, how many were cut."""
        if self.book is None or self._library is None:
            return {}
        return {
            "texts/known": float(len(self.book)),
            "texts/hit_rate": self.book.met / max(self.book.asked, 1),
            "texts/cut": float(self._library.cut),
        }
