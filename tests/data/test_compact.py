"""Many items in little memory: what is stored comes back, is found again, and never comes from something else."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foreword
from foreword import status
from foreword.base.tokenizers import tokenizer_identity
from foreword.data import Example, Reading, compact, examples, row_cache
from foreword.data.columns import Unstorable, columns_of
from foreword.data.compact import HEAD, Compact, Gathering, stored
from foreword.data.tokenizing import SWITCH, row_count, threads_of_tokenizers
from foreword.data.views import Chosen, spread, token_counts, without
from foreword.errors import DataError
from foreword.files import Unreadable, cache_folder
from foreword.tasks import LanguageModelling, TaskSettings
from foreword.training.rows import digest
from status_helpers import Heard
from tiny import byte_tokenizer, tiny_base
from training_helpers import equal, settings, tensors

MANY = 40  # items, where more than 16 go into a store


@pytest.fixture(autouse=True)
def small_limits(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(examples, "LISTED_ITEMS", 16)
    monkeypatch.setattr(row_cache, "LARGE", 100)
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "cache"))


def example(number: int) -> Example:
    draw = random.Random(number)
    ids = tuple(draw.randrange(50_000) for _ in range(draw.randrange(1, 9)))
    learned = None if number % 3 else tuple(draw.random() < 0.5 for _ in ids)
    target = "ü☃" * (number % 4)
    return Example(
        ids[:2], ids, f"prompt {number}", target, (target, "")[: number % 3], f"a.jsonl:{number}", learned, 1
    )


EXAMPLES = [example(number) for number in range(MANY)]


def gathered(place: Path, kept: bool, items: list[Any] = EXAMPLES) -> Any:
    with Gathering[Any](place, kept, listed=16) as gathering:
        for item in items:
            gathering.append(item)
        assert len(gathering) == len(items)
        return gathering.finish({"bad": []})


@pytest.mark.parametrize("kept", [True, False])
def test_every_field_of_every_item_comes_back(tmp_path, kept) -> None:
    items = gathered(tmp_path / "rows", kept)
    assert isinstance(items, Compact)
    assert list(items) == EXAMPLES
    assert items[-1] == EXAMPLES[-1]
    assert list(items[3:30:5]) == EXAMPLES[3:30:5]
    assert token_counts(items).tolist() == token_counts(EXAMPLES).tolist() == [item.num_tokens for item in EXAMPLES]
    assert type(items[0].prompt_ids[0]) is int
    with pytest.raises(IndexError):
        items[MANY]
    assert digest(items) == digest(EXAMPLES)


def test_few_items_are_a_list(tmp_path) -> None:
    assert gathered(tmp_path / "rows", True, EXAMPLES[:16]) == EXAMPLES[:16]
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_kept_goes_with_its_items(tmp_path) -> None:
    items = gathered(tmp_path / "rows", False)
    assert [path.name.startswith(".rows.new-") for path in tmp_path.iterdir()] == [True]
    del items
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_fails_leaves_nothing(tmp_path) -> None:
    with pytest.raises(AttributeError):
        gathered(tmp_path / "rows", True, [*EXAMPLES, None])
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True)
class Nested:
    choices: tuple[tuple[int, ...], ...]
    num_tokens: int = 1


@pytest.mark.parametrize("at", [0, 20, MANY - 1])
def test_what_can_not_be_stored_stays_a_list(tmp_path, at) -> None:
    """An id over 32 bits stands for a place for a virtual token."""
    items = list(EXAMPLES)
    items[at] = dataclasses.replace(items[at], prompt_ids=(2**40,))
    assert gathered(tmp_path / "rows", True, items) == items
    nested = [Nested(((1, 2), (3,)))] * MANY
    assert gathered(tmp_path / "others", True, nested) == nested
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Unstorable, match=r"Nested\.choices"):
        columns_of(Nested, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "grown", "changed", "head", "version", "gone", "no head"])
def test_a_damaged_store_is_not_read(tmp_path, damage) -> None:
    place = tmp_path / "rows"
    gathered(place, True)
    assert list(stored(place, Example)[0]) == EXAMPLES
    file = place / "target_ids.i"
    data = file.read_bytes()
    head = json.loads((place / HEAD).read_text())
    if damage == "cut":
        file.write_bytes(data[:-4])
    elif damage == "grown":
        file.write_bytes(data + b"\0\0\0\0")
    elif damage == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "head":
        (place / HEAD).write_text(json.dumps(head | {"count": 3}))
    elif damage == "version":
        (place / HEAD).write_text(json.dumps(head | {"version": 2}))
    elif damage == "gone":
        file.unlink()
    else:
        (place / HEAD).unlink()
    with pytest.raises(Unreadable):
        stored(place, Example)


def write(folder: Path, count: int = MANY, **changes: str) -> str:
    rows = [{"input": f"q{number}", "target": f"answer {number % 7}"} | changes for number in range(count)]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def append(source: str, line: str) -> None:
    with Path(source).open("a") as file:
        file.write(line)


def load(source: str, template: str = "{input}=", **reading: Any) -> tuple[Any, Any, list[str]]:
    heard = Heard()
    with status.listening(heard):
        items, bad = LanguageModelling(tiny_base(), TaskSettings(template)).load(source, Reading(**reading))
    return items, bad, heard.notes


def was_kept(notes: list[str]) -> bool:
    return any(note.endswith("rows as they were tokenised before") for note in notes)


def test_a_large_file_is_tokenised_once(tmp_path, monkeypatch) -> None:
    source = write(tmp_path)
    append(source, '{"input": 3}\n')
    first, bad, notes = load(source, max_bad_rows=1)
    assert not was_kept(notes)
    monkeypatch.setattr(LanguageModelling, "item", lambda *_: 1 / 0)
    again, bad_again, notes = load(source, max_bad_rows=1)
    assert was_kept(notes)
    assert list(again) == list(first)
    assert bad_again == bad
    assert str(bad[0]).startswith(f"{source}:41: ")


@pytest.mark.parametrize("what", ["bytes", "template", "max_tokens", "limit", "tokenizer", "version", "name", "chat"])
def test_what_changes_the_rows_makes_them_anew(tmp_path, monkeypatch, what) -> None:
    source, template = write(tmp_path), "{input}="
    assert not was_kept(load(source)[2])
    reading: dict[str, Any] = {}
    if what == "bytes":
        write(tmp_path, target="other")
    elif what == "template":
        template = "{input}:"
    elif what == "max_tokens":
        reading["max_tokens"] = 100
    elif what == "limit":
        reading["limit"] = 30
    elif what == "tokenizer":
        monkeypatch.setattr(type(byte_tokenizer()), "__len__", lambda self: 999)
    elif what == "version":
        monkeypatch.setattr(row_cache, "__version__", "0.0.0")
    elif what == "name":
        source = str(shutil.copy(source, tmp_path / "copy.jsonl"))
    else:
        monkeypatch.setattr(byte_tokenizer(False), "chat_template", "{{ messages[0]['content'] }}")
    assert not was_kept(load(source, template, **reading)[2])
    assert was_kept(load(source, template, **reading)[2])


def test_small_files_and_what_can_not_be_known_again_are_not_kept(tmp_path, monkeypatch) -> None:
    source = write(tmp_path)
    monkeypatch.setattr(row_cache, "LARGE", 10**6)
    load(source)
    assert not was_kept(load(source)[2])
    monkeypatch.setattr(row_cache, "LARGE", 100)
    monkeypatch.setattr(byte_tokenizer(False), "chat_template", "{{ strftime_now('%d') }}{{ messages }}")
    assert tokenizer_identity(byte_tokenizer(False)) is None
    load(source)
    assert not was_kept(load(source)[2])
    assert [path for path in (cache_folder() / "rows").iterdir() if not path.name.startswith(".")] == []


def test_a_damaged_store_is_made_anew(tmp_path) -> None:
    source = write(tmp_path)
    first = list(load(source)[0])
    (file,) = (cache_folder() / "rows").rglob("target_ids.i")
    file.write_bytes(file.read_bytes()[:-8])
    items, _, notes = load(source)
    assert not was_kept(notes)
    assert list(items) == first
    assert was_kept(load(source)[2])


def test_the_cache_is_bounded_and_what_was_used_last_stays(tmp_path, monkeypatch) -> None:
    import os

    source = write(tmp_path)
    rows = cache_folder() / "rows"
    for number in range(3):
        load(source, f"{{input}}{number}")
        (new,) = (path for path in rows.iterdir() if (path / HEAD).stat().st_mtime > 10**6)
        size = sum(file.stat().st_size for file in new.iterdir())
        os.utime(new / HEAD, (number, number))
    load(source, "{input}0")  # used again
    monkeypatch.setattr(row_cache, "MOST", 2.5 * size)
    load(source, "{input}3")
    assert [was_kept(load(source, f"{{input}}{number}")[2]) for number in (0, 3)] == [True, True]
    assert len(list(rows.iterdir())) == 2


def test_without_a_cache_rows_stay_in_memory(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "file" / "cache"))
    items, _, notes = load(write(tmp_path))
    assert isinstance(items, list)
    assert len(items) == MANY
    assert any(note.startswith("the rows are held in memory, since they can't be stored") for note in notes)


def test_rows_that_fail_leave_nothing(tmp_path) -> None:
    source = write(tmp_path)
    append(source, "nonsense\n")
    with pytest.raises(DataError, match="1 bad row"):
        load(source)
    assert list((cache_folder() / "rows").iterdir()) == []


def test_a_run_on_stored_rows_is_the_run_on_listed_ones(tmp_path, monkeypatch) -> None:
    """Rows made anew, from the cache, and in a list: one digest, one prefix."""
    write(tmp_path)
    (tmp_path / "valid.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    base, results = tiny_base(), []
    for name in ("new", "kept", "listed"):
        if name == "listed":
            monkeypatch.setattr(examples, "LISTED_ITEMS", 1000)
            monkeypatch.setattr(row_cache, "LARGE", 10**6)
        heard = Heard()
        with status.listening(heard):
            results.append(foreword.train(base, settings(tmp_path, name, steps=4, validation=None)))
        assert was_kept(heard.notes) == (name == "kept")
    records = [result.prefix.record["data"] for result in results]
    assert records[0] == records[1] == records[2]
    assert all(equal(tensors(results[0].prefix), tensors(result.prefix)) for result in results)


def test_stored_rows_outlive_a_fork_and_a_pickle_free_worker(tmp_path) -> None:
    """What is unlinked while it is used stays readable: another process may make room."""
    items = gathered(tmp_path / "rows", True)
    shutil.rmtree(tmp_path / "rows")
    assert list(items) == EXAMPLES


def test_views_make_items_when_asked() -> None:
    chosen = Chosen(EXAMPLES, [3, 1, 2])
    assert list(chosen) == [EXAMPLES[3], EXAMPLES[1], EXAMPLES[2]]
    assert chosen[-1] == EXAMPLES[2]
    assert list(chosen[:2]) == [EXAMPLES[3], EXAMPLES[1]]
    assert token_counts(chosen).tolist() == [EXAMPLES[number].num_tokens for number in (3, 1, 2)]
    assert list(without(EXAMPLES, [0, 5])) == [item for item in EXAMPLES if item not in (EXAMPLES[0], EXAMPLES[5])]
    assert list(spread(range(100), 4)) == [0, 25, 50, 75]
    assert spread(EXAMPLES, MANY) is EXAMPLES


def test_how_many_rows_there_will_be(tmp_path) -> None:
    source = write(tmp_path)
    assert (row_count(source, None), row_count(source, 7)) == (MANY, 7)
    Path(source).write_bytes(b'{"a": 1}\n{"a": 2}')
    assert row_count(source, None) == 2
    assert row_count("org/name", None) is None
    assert row_count(str(tmp_path / "no.jsonl"), 5) == 5


@pytest.mark.parametrize(
    ("before", "within", "after"), [(None, "true", "off"), ("off", "true", "off"), ("false", "false", "false")]
)
def test_tokenizers_have_threads_while_rows_are_read(monkeypatch, before, within, after) -> None:
    import os

    monkeypatch.delenv(SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(SWITCH, before)
    with threads_of_tokenizers():
        assert os.environ.get(SWITCH) == within
    assert os.environ.get(SWITCH) == after
    monkeypatch.setenv(SWITCH, "false")


MEMORY = """
import sys
import psutil
from foreword.data import Example
from foreword.data.compact import Gathering
from pathlib import Path
def megabytes(): return psutil.Process().memory_info().rss / 1e6
before = megabytes()
with Gathering(Path(sys.argv[1]), True, listed=int(sys.argv[2])) as gathering:
    for number in range(100_000):
        ids = tuple(range(number, number + 100))
        gathering.append(Example(ids[:60], ids[60:], "p" * 200, "t" * 100, ("t" * 100,), f"a:{number}"))
    items = gathering.finish({})
print(round(megabytes() - before), len(items))
"""


def test_a_hundred_thousand_rows_take_little_memory(tmp_path) -> None:
    """A list of them takes some 400 MB, a store as much of the disk."""
    used = {}
    for name, listed in (("store", 1000), ("list", 10**9)):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / name), str(listed)],
            capture_output=True, text=True, check=True, timeout=200,
        )  # fmt: skip
        used[name], count = map(int, done.stdout.split())
        assert count == 100_000
    print(f"\n{used}")
    assert used["store"] < 60 < 150 < used["list"]


def test_columns_are_plain_numbers_of_fixed_sizes(tmp_path) -> None:
    gathered(tmp_path / "rows", True)
    ids = np.fromfile(tmp_path / "rows" / "target_ids.i", "<i4")
    assert ids.tolist() == [token for item in EXAMPLES for token in item.target_ids]
    assert json.loads((tmp_path / "rows" / HEAD).read_text())["version"] == compact.VERSION


def test_rows_of_a_mixture_stay_where_they_are() -> None:
    from foreword.tasks.mixture import MixtureItem, MixtureRows

    rows = MixtureRows({"a": EXAMPLES[:3], "none": [], "b": EXAMPLES[3:5]})
    expected = [MixtureItem("a" if number < 3 else "b", EXAMPLES[number]) for number in range(5)]
    assert list(rows) == expected
    assert (rows[-1], list(rows[1:4]), len(rows)) == (expected[-1], expected[1:4], 5)
    assert token_counts(rows).tolist() == [item.num_tokens for item in expected]
    assert rows.of("b") == EXAMPLES[3:5]
    with pytest.raises(IndexError):
        rows[5]
