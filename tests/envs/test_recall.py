import subprocess
import sys
from pathlib import Path

from scalezero.envs.recall import Recall, folder

WRITE = """
import sys; sys.path[:] = sys.argv[3:]
from pathlib import Path
from scalezero.envs.recall import Recall
recall = Recall(Path(sys.argv[1]))
for number in range(200):
    recall.keep(f"{sys.argv[2]}-{number}", ("go", "stay"))
    recall.keep(f"both-{number}", (sys.argv[2],))
"""


def test_what_is_kept_is_found_in_another_run(tmp_path):
    first = Recall(tmp_path / "deep" / "file.sqlite")
    assert first.find("a") is None
    first.keep("a", ("look", "go «nord»"))
    first.keep("empty", ())
    first.close()
    again = Recall(tmp_path / "deep" / "file.sqlite")
    assert again.find("a") == ("look", "go «nord»")
    assert again.find("empty") == ()


def test_the_first_to_know_is_believed(tmp_path):
    one, two = Recall(tmp_path / "file"), Recall(tmp_path / "file")
    one.keep("a", ("first",))
    two.keep("a", ("second",))
    assert one.find("a") == two.find("a") == ("first",)


def test_the_oldest_states_are_forgotten(tmp_path):
    recall = Recall(tmp_path / "file", states=3)
    for state in "abcde":
        recall.keep(state, (state,))
    assert [recall.find(state) for state in "abcde"] == [None, None, ("c",), ("d",), ("e",)]


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "file"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(path), name, *sys.path])
        for name in ("one", "two")
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    recall = Recall(path)
    for number in range(200):
        assert recall.find(f"one-{number}") == recall.find(f"two-{number}") == ("go", "stay")
        assert recall.find(f"both-{number}") in (("one",), ("two",))


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    recall = Recall(tmp_path / "file" / "deeper")
    recall.keep("a", ("look",))
    assert recall.find("a") == ("look",)
    (tmp_path / "broken").write_text("not a data base, though as long as the head of one " * 20)
    broken = Recall(tmp_path / "broken")
    broken.keep("a", ("look",))
    assert broken.find("a") == ("look",)


def test_the_folder_is_the_users_unless_a_variable_says_another(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALEZERO_CACHE", str(tmp_path))
    assert folder("jericho") == tmp_path / "jericho"
    monkeypatch.delenv("SCALEZERO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder("jericho") == tmp_path / "scalezero" / "jericho"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folder("jericho") == Path.home() / ".cache" / "scalezero" / "jericho"
