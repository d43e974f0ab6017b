"""What does the model read for each text of a run? One row of one array, made once.

With a frozen sentence encoder a row is the text's embedding; with one that trains it is the text's
word pieces. The model takes rows by number, so that no text is encoded twice, and none by itself.
"""

from collections.abc import Callable, Sequence
from itertools import batched
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Shaped

from scalezero.data.book import Book
from scalezero.data.growing import FileDamaged, extend
from scalezero.nets.text import PAD, Bert
from scalezero.run.sentences import Tokeniser, pretrained

type Tokenise = Callable[[Sequence[str]], tuple[Int32[np.ndarray, "text piece"], int]]

SHORTEST = 8  # texts are filled up to this many pieces, at least
PIECES = 512  # pieces that one call of the encoder takes, at most, unless one text has more
TEXTS = 32  # texts that one call takes, at most
ROUND = 1024  # texts that are brought to the device together, at most
LENGTH_ERROR = 1e-3  # embeddings have length 1, to this


class Library:
    """A row for each text of a book."""

    def __init__(
        self,
        book: Book,
        tokenise: Tokenise,
        reader: Bert | None,
        *,
        file: Path | None = None,
        capacity: int,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        """An empty library; `sync` fills it. `library` makes one as a config wants it.

        Args:
            book: Has the texts.
            tokenise: From texts to their word pieces, and how many texts were cut.
            reader: The frozen encoder; None: rows are word pieces.
            file: Where embeddings outlive the process; word pieces are cut anew.
            capacity: Rows to begin with; they double when all are taken.
            say: Told what a user should know.
        """
        self.book = book
        self.cut = 0  # texts too long for the encoder, since this process began
        self.known = 0  # texts that have a row
        width = tokenise([])[0].shape[1] if reader is None else reader.words.shape[1]
        dtype = jnp.int32 if reader is None else jnp.float32
        self.array = jnp.zeros((capacity, width), dtype)
        self._tokenise, self._reader, self._say = tokenise, reader, say
        self._file = None if reader is None else file
        self._fresh: list[np.ndarray] = []  # embeddings that are not in the file
        self._saved = 0  # embeddings that are in it

    def sync(self) -> Shaped[Array, "text size"]:
        """The array, with a row for every text of the book; the rows behind them are 0.

        It is never changed or donated later: an update that is under way may go on reading it.
        """
        while self.known < len(self.book):
            pieces, cut = self._tokenise(self.book.texts[self.known :][:ROUND])
            rows = pieces if self._reader is None else encode(self._reader, pieces)
            if self._grow(self.known + len(rows)):
                self._say(
                    f"there are {len(self.book):,} texts now, so the library grows to "
                    f"{len(self.array):,} rows, and all that reads it is compiled anew"
                )
            self.array = _with_rows(self.array, self.known, rows)
            self.known, self.cut = self.known + len(rows), self.cut + cut
            if self._file is not None:
                self._fresh.append(rows)
        return self.array

    def save(self) -> int:
        """Write new embeddings to the file; how many it holds, which `restore` wants to know."""
        if self._file is not None and (self._fresh or not self._saved):
            size = self._saved * self.array[:1].nbytes
            extend(self._file, size, b"".join(rows.tobytes() for rows in self._fresh))
            self._saved, self._fresh = self.known, []
        return self._saved

    def restore(self, count: int) -> None:
        """Fill a fresh library of a restored book with the first `count` embeddings of its file.

        Where there is no file, the next `sync` makes them again.
        """
        if self.known or count > len(self.book):
            raise ValueError("only a fresh library can be restored, after its book")
        if self._file is None or not self._file.is_file():
            return
        width = self.array.shape[1]
        rows = np.fromfile(self._file, np.float32, count * width)
        rows = rows[: len(rows) // width * width].reshape(-1, width)
        whole = np.abs(np.linalg.norm(rows, axis=1) - 1) < LENGTH_ERROR
        if len(rows) < count or not whole.all():
            raise FileDamaged(
                f"{self._file}: of the {count:,} embeddings that the checkpoint counts it holds "
                f"{whole.sum():,} undamaged; delete it, and they are made again"
            )
        self._grow(count)
        host = np.zeros(self.array.shape, np.float32)
        host[:count] = rows
        self.array = jnp.asarray(host)
        self.known = self._saved = count

    def _grow(self, count: int) -> bool:
        """Make room for `count` rows; whether there was too little."""
        before = len(self.array)
        while len(self.array) < count:
            self.array = jnp.concatenate([self.array, jnp.zeros_like(self.array)])
        return len(self.array) > before


def library(
    book: Book,
    trains: bool,
    limit: int,
    *,
    file: Path | None = None,
    capacity: int,
    say: Callable[[str], None] = lambda message: None,
) -> Library:
    """An empty library for one of the encoders there are; both have the same word pieces.

    Args:
        book: Has the texts.
        trains: Whether the encoder is part of what learns; otherwise it is the published one.
        limit: Word pieces of a text that are read; the rest is cut off.
        file: As for `Library`.
        capacity: As for `Library`.
        say: As for `Library`.
    """
    return Library(
        book,
        Tokeniser(limit),
        None if trains else pretrained(),
        file=file,
        capacity=capacity,
        say=say,
    )


def encode(
    reader: Bert, pieces: Int32[np.ndarray, "text piece"]
) -> Float32[np.ndarray, "text embed"]:
    """The embedding of each text.

    Texts of about the same length go together, and batches have one of few shapes, so that few
    programs are compiled and little padding is computed.
    """
    limit = pieces.shape[1]
    used = np.sum(pieces != PAD, axis=1).tolist()
    length = np.array([min(limit, _length(count)) for count in used], np.int32)
    rows = np.zeros((len(pieces), reader.words.shape[1]), np.float32)
    for each in np.unique(length).tolist():
        most = min(TEXTS, max(1, PIECES // _power(each)))
        for batch in batched(np.flatnonzero(length == each).tolist(), most):
            padded = np.full((_power(len(batch)), each), PAD, np.int32)
            padded[: len(batch)] = pieces[list(batch), :each]
            rows[list(batch)] = _embeddings(reader, jnp.asarray(padded))[: len(batch)]
    return rows


@eqx.filter_jit
def _embeddings(reader: Bert, pieces: Int32[Array, "text piece"]) -> Float[Array, "text embed"]:
    return jax.vmap(reader)(pieces)


def _with_rows(
    array: Shaped[Array, "text size"], start: int, rows: np.ndarray
) -> Shaped[Array, "text size"]:
    """`array` with `rows` from `start` on, by one of few programs."""
    count = _power(len(rows))
    padded = np.zeros((count, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    place = np.full(count, len(array), np.int32)  # past the end: dropped
    place[: len(rows)] = np.arange(start, start + len(rows))
    return _scatter(array, jnp.asarray(place), jnp.asarray(padded))


@jax.jit
def _scatter(array: Array, place: Array, rows: Array) -> Array:
    return array.at[place].set(rows, mode="drop")


def _length(count: int) -> int:
    """To how many pieces a text of `count` is filled up: 8, 12, 16, 24, 32, 48, 64, …"""
    power = max(SHORTEST, _power(count))
    return power * 3 // 4 if power > SHORTEST and count <= power * 3 // 4 else power


def _power(count: int) -> int:
    """The smallest power of two that is no less than `count`."""
    return 1 << max(0, count - 1).bit_length()
