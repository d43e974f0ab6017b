"""A text has one number for ever, wherever the process was killed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero.data.book import Book
from scalezero.data.growing import FileDamaged
from scalezero.envs.spec import NOTHING, Page

ANY = st.text(st.characters(exclude_categories=()), max_size=8)  # broken UTF-8 included


def pages(*all_pages: Page) -> np.ndarray:
    array = np.empty(len(all_pages), object)
    array[:] = all_pages
    return array


def written(tmp_path, *texts: str):
    """A book of `texts`, in a file."""
    book = Book(tmp_path / "texts.jsonl")
    for text in texts:
        book.number(text)
    assert book.save() == len(texts)
    return book


def restored(book: Book, count: int) -> Book:
    copy = Book(book.file)
    copy.restore(count)
    return copy


def test_a_page_becomes_the_numbers_of_its_texts():
    book = Book()
    shown = pages(Page("a hall", ("go north", "wait")), Page("a cave", ("wait",)))
    numbers = book.read(shown, 3)
    assert numbers.dtype == np.int32
    np.testing.assert_array_equal(numbers, [[0, 1, 2, NOTHING], [3, 2, NOTHING, NOTHING]])
    np.testing.assert_array_equal(book.read(shown, 3), numbers)
    assert book.texts == ["a hall", "go north", "wait", "a cave"]
    assert (book.asked, book.met) == (10, 6)


def test_a_page_with_too_many_actions_is_refused():
    with pytest.raises(ValueError, match=r"lists 2 actions, but its task has at most 1 choices"):
        Book().read(pages(Page("a hall", ("north", "south"))), 1)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(ANY, max_size=5), min_size=1, max_size=4))
def test_a_restored_book_is_the_same_and_goes_on_the_same(tmp_path_factory, rounds):
    book = Book(tmp_path_factory.mktemp("book") / "texts.jsonl")
    for texts in rounds:
        for text in texts:
            book.number(text)
        count = book.save()
    assert count == len(book)
    copy = restored(book, count)
    assert copy.texts == book.texts
    for text in ["never met before, by any of them", *reversed(book.texts)]:
        assert copy.number(text) == book.number(text)


def test_what_was_written_after_the_checkpoint_is_forgotten(tmp_path):
    book = written(tmp_path, "a", "b\n", "c")
    book.number("d")
    book.save()
    copy = restored(book, 2)
    assert copy.number("other") == 2
    assert copy.save() == 3
    assert restored(copy, 3).texts == ["a", "b\n", "other"]
    assert copy.file.read_bytes() == b'"a"\n"b\\n"\n"other"\n'


def test_a_fresh_book_overwrites_the_file_of_a_run_that_saved_no_checkpoint(tmp_path):
    written(tmp_path, "of a run", "that is gone")
    written(tmp_path, "a")
    assert (tmp_path / "texts.jsonl").read_bytes() == b'"a"\n'


def test_an_empty_book_can_be_saved_and_restored(tmp_path):
    assert len(restored(written(tmp_path), 0)) == 0


def test_reading_a_book_changes_no_file(tmp_path):
    book = written(tmp_path, "a", "b")
    with book.file.open("ab") as file:
        file.write(b'"half a li')
    before = book.file.read_bytes()
    restored(book, 1)
    assert book.file.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[: b.index(b"\n") + 1], "holds 1 texts, but the checkpoint counts 2"),
        (lambda b: b[:-1], "line 2 is damaged"),
        (lambda b: b.replace(b'"b"', b"123"), "line 2 is damaged"),
        (lambda b: b.replace(b'"b"', b'"a"'), "line 2 is damaged"),
        (lambda b: b.replace(b'"a"', b"\0\0\0"), "line 1 is damaged"),
        (lambda b: b.replace(b'"a"', b'"\xff"'), "line 1 is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, says):
    book = written(tmp_path, "a", "b")
    book.file.write_bytes(damage(book.file.read_bytes()))
    with pytest.raises(FileDamaged, match=rf"texts\.jsonl: {says}"):
        restored(book, 2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileDamaged, match=r"texts\.jsonl: the texts of this run are missing"):
        restored(Book(tmp_path / "texts.jsonl"), 1)


def test_a_file_that_shrank_under_a_run_is_named(tmp_path):
    book = written(tmp_path, "a", "b")
    book.file.write_bytes(b'"a"')
    book.number("c")
    with pytest.raises(FileDamaged, match=r"holds 3 bytes, but this run wrote 8"):
        book.save()


def test_a_book_that_is_in_use_is_not_restored(tmp_path):
    book = written(tmp_path, "a")
    with pytest.raises(ValueError, match="only a fresh book"):
        book.restore(1)


KILLED = """
import sys
from pathlib import Path
from scalezero.data.book import Book
book = Book(Path(sys.argv[1]))
while True:
    for _ in range(100):
        book.number(f"text {len(book)} " + 50 * "x")
    print(book.save(), flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_saved(tmp_path):
    file = tmp_path / "texts.jsonl"
    command = [sys.executable, "-c", KILLED, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        counts = [int(process.stdout.readline()) for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
    book = Book(file)
    book.restore(counts[-1])
    assert [int(text.split()[1]) for text in book.texts] == list(range(500))
