"""Temporary files and folders: whose rights they have, who may clear them away, and reading while someone writes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foreword import folders
from foreword.errors import PrefixFormatError, StorageError
from foreword.files import new_folder, recover, remove_folder, write_json, write_text
from foreword.folders import is_temporary, reread, temporary_file, temporary_folder
from foreword.prefix import Prefix
from prefix_helpers import small

DEAD = """
import os, sys
from pathlib import Path
from foreword.files import new_folder
from foreword.folders import temporary_file
target = Path(sys.argv[1])
with new_folder(target) as folder, temporary_file(target) as (path, handle):
    (folder / "half").write_text("x")
    print("there", flush=True)
    sys.stdin.read()
    os._exit(1)
"""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("mask", "parent", "folder", "file"),
    [
        (0o022, 0o755, 0o755, 0o644),
        (0o002, 0o775, 0o775, 0o664),
        (0o077, 0o755, 0o700, 0o600),
        (0o027, 0o777, 0o750, 0o640),
        (0o022, 0o700, 0o700, 0o600),
        (0o000, 0o750, 0o750, 0o640),
        (0o022, 0o1777, 0o755, 0o644),
    ],
)
def test_files_have_the_rights_of_their_folder(tmp_path, mask, parent, folder, file) -> None:
    """As the umask says, and no more than the folder around gives."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(parent)
    with umask(mask):
        saved = small().save(place / "p")
        write_json(place / "value.json", 1)
        small(5).save(place / "p")  # again, over the first
    assert rights(saved) == folder
    assert [rights(path) for path in saved.iterdir()] == [file, file]
    assert rights(place / "value.json") == file


def test_a_group_that_the_folder_hands_down_stays(tmp_path) -> None:
    tmp_path.chmod(0o2755)
    assert rights(small().save(tmp_path / "p")) & 0o2000


NAMES = [
    (".p.new-1a2b3c4d", True), (".p.old-x", True), (".p.new-12-removed", True), (".a.b.new-0_a", True),
    ("p", False), (".p", False), (".p.new", False), (".new-1", False), ("p.new-1", False), (".p.new-a.b", False),
    (".config.json.swp", False), ("..new-1", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "temporary"), NAMES)
def test_names_of_unfinished_writes(name, temporary) -> None:
    assert is_temporary(name) is temporary


def test_those_that_are_made_have_such_names(tmp_path) -> None:
    with (
        temporary_folder(tmp_path / "a[b]*") as one,
        temporary_file(tmp_path / "a\nb") as (two, _),
        temporary_folder(tmp_path / "p", "old") as three,
    ):
        assert all(is_temporary(path.name) for path in (one, two, three))


def test_the_next_save_clears_up_after_dead_writers_alone(tmp_path) -> None:
    """And so does `recover`. What a living process writes stays, and so does what belongs to another target."""
    target, others = tmp_path / "p", {"p", ".q.new-dead", ".p.notes", ".p.new-a.swp", ".p.new-link"}
    for name in (".p.new-dead", ".p.old-dead", ".p.new-12-removed", ".q.new-dead", ".p.notes", ".p.new-a.swp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".p.new-file").write_text("half")
    (tmp_path / ".p.new-link").symlink_to(tmp_path / ".q.new-dead")
    os.mkfifo(tmp_path / ".p.new-pipe")
    process = subprocess.Popen(
        [sys.executable, "-c", DEAD, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "there"
        small().save(target)
        recover(target)
        left = {path.name for path in tmp_path.iterdir()} - others
        assert len(left) == 2, left  # those of the process
        assert len(list(tmp_path.glob(".p.new-*/half"))) == 1
    finally:
        process.kill()
        process.communicate()
    small().save(target)
    assert {path.name for path in tmp_path.iterdir()} == others


def test_a_single_file_is_cleared_up_after_too(tmp_path) -> None:
    (tmp_path / ".value.json.new-0").write_text("half")
    (tmp_path / ".other.json.new-0").write_text("half")
    write_json(tmp_path / "value.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"value.json", ".other.json.new-0"}


def test_a_folder_that_a_dead_writer_moved_aside_comes_back(tmp_path) -> None:
    small().save(tmp_path / ".p.old-dead" / "p")
    recover(tmp_path / "p")
    assert Prefix.load(tmp_path / "p").length == 3
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_where_nothing_can_be_locked_nothing_is_cleared_away(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "_lock", lambda handle: None)
    (tmp_path / ".p.new-dead").mkdir()
    small().save(tmp_path / "p")
    assert {path.name for path in tmp_path.iterdir()} == {"p", ".p.new-dead"}


def test_a_name_that_is_cleared_away_under_its_writer_is_made_again(tmp_path, monkeypatch) -> None:
    """Someone who clears up may come between making a folder and locking it."""
    real, tries = folders._make_folder, []

    def cleared(path: Path) -> int:
        handle = real(path)
        tries.append(path)
        if len(tries) < 3:
            path.rmdir()
        return handle

    monkeypatch.setattr(folders, "_make_folder", cleared)
    assert Prefix.load(small().save(tmp_path / "p")).length == 3
    assert len(tries) == 3
    monkeypatch.setattr(folders, "_make_folder", lambda path: (_ for _ in ()).throw(FileExistsError(17, "exists")))
    with pytest.raises(StorageError):
        small().save(tmp_path / "q")


def test_a_link_to_a_prefix_is_replaced_by_the_prefix(tmp_path) -> None:
    (tmp_path / "link").symlink_to(small().save(tmp_path / "p"))
    assert Prefix.load(small(5).save(tmp_path / "link")).length == 5
    assert Prefix.load(tmp_path / "p").length == 3
    assert {path.name for path in tmp_path.iterdir()} == {"p", "link"}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_names_that_no_file_can_have(tmp_path, name) -> None:
    with pytest.raises(StorageError):
        small().save(tmp_path / name)
    with pytest.raises(StorageError):
        write_json(tmp_path / name, 1)
    assert list(tmp_path.iterdir()) == []


def test_removing_is_whole_or_not_at_all(tmp_path) -> None:
    small().save(tmp_path / "p")
    remove_folder(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError):
        remove_folder(tmp_path / "p")


def test_an_error_within_leaves_nothing(tmp_path) -> None:
    with pytest.raises(StorageError), new_folder(tmp_path / "p") as folder:
        (folder / "absent" / "file").write_text("x")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "text", "\ud800")
    assert list(tmp_path.iterdir()) == []


class Reader:
    """Reads a folder that is another one for the first few times, as with a writer."""

    def __init__(self, folder: Path, changes: int) -> None:
        self.folder, self.changes, self.reads = folder, changes, 0

    def __call__(self) -> int:
        self.reads += 1
        if self.reads <= self.changes:
            with new_folder(self.folder) as folder:
                (folder / "n").write_text(json.dumps(self.reads))
        if self.reads <= self.changes or self.changes < 0:
            raise PrefixFormatError("damaged")
        return self.reads


@pytest.mark.parametrize("changes", [0, 1, 5])
def test_a_reader_reads_again_while_its_folder_changes(tmp_path, changes) -> None:
    (tmp_path / "p").mkdir()
    reader = Reader(tmp_path / "p", changes)
    assert reread((tmp_path / "p", tmp_path / "p" / "n"), reader, (PrefixFormatError,)) == changes + 1


def test_a_reader_of_what_stays_damaged_says_so_at_once(tmp_path) -> None:
    (tmp_path / "p").mkdir()
    for folder in (tmp_path / "p", tmp_path / "absent", tmp_path / "a\0b"):
        reader = Reader(folder, -1)
        with pytest.raises(PrefixFormatError):
            reread((folder, folder / "n"), reader, (PrefixFormatError,))
        assert reader.reads == 1


def test_a_reader_gives_up_when_the_changes_do_not_end(tmp_path) -> None:
    (tmp_path / "p").mkdir()
    reader = Reader(tmp_path / "p", 10**6)
    with pytest.raises(PrefixFormatError):
        reread((tmp_path / "p", tmp_path / "p" / "n"), reader, (PrefixFormatError,))
    assert 1 < reader.reads < 100


def test_a_folder_that_is_moved_aside_is_waited_for(tmp_path) -> None:
    """Where two names can't be swapped in one step, there is no folder for a moment."""
    aside = tmp_path / ".p.old-0"
    aside.mkdir()
    reads = []

    def read() -> int:
        reads.append(1)
        if len(reads) == 3:
            (tmp_path / "p").mkdir()
        if not (tmp_path / "p").exists():
            raise PrefixFormatError("there is none")
        return len(reads)

    assert reread((tmp_path / "p",), read, (PrefixFormatError,)) == 3
