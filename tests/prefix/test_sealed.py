"""The digest of a saved prefix covers all of it; older formats, which covered less, are read with a note."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foreword.compression.forms import Student
from foreword.compression.svd import Svd
from foreword.errors import ForewordError, OldFormatWarning, PrefixError, PrefixFormatError
from foreword.prefix import KV, Prefix
from foreword.prefix.stored import MANIFEST, TENSORS, read_manifest
from manifest_helpers import VALUES, at, edit, places, put, remove
from prefix_helpers import BASE, assert_same, make_old, small


def saved(folder: Path, form: str = "plain") -> Prefix:
    """Save a prefix of one form in `folder`; return it."""
    if form == "plain":
        prefix = small()
        prefix.save(folder)
        return prefix
    if form == "svd":
        made = Student(small(6, torch.float16), lambda tensor: Svd(2)).finish()
        made.prefix.save(folder, made.encoding)
        return made.prefix
    gates = {f"decoder.{layer}.gate": torch.randn(2) for layer in range(2)}
    prefix = Prefix(small().slots, 0, BASE, "gated", gates, record={"step": 3, "more": [1.5, {"a": None}], "none": {}})
    prefix.save(folder)
    return prefix


@pytest.fixture(scope="module", params=["plain", "svd", "gated"])
def original(request, tmp_path_factory) -> tuple[Path, Prefix]:
    folder = tmp_path_factory.mktemp("original") / "p"
    return folder, saved(folder, request.param)


def assert_refused_or_the_same(folder: Path, prefix: Prefix) -> None:
    try:
        loaded = Prefix.load(folder)
    except ForewordError:
        return
    assert_same(loaded, prefix)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_other_value_in_the_manifest_is_noticed(original, tmp_path_factory, data) -> None:
    folder, prefix = original
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "p")
    manifest = json.loads((copy / MANIFEST).read_text())
    place = data.draw(st.sampled_from(list(places(manifest))))
    before, new = at(manifest, place), data.draw(VALUES)
    put(manifest, place, new)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    if json.dumps(new) == json.dumps(before):
        assert_same(Prefix.load(copy), prefix)
    else:
        with pytest.raises(PrefixFormatError):
            Prefix.load(copy)


def test_any_value_that_is_left_out_or_added_is_noticed(original, tmp_path) -> None:
    folder, _ = original
    manifest = json.loads((folder / MANIFEST).read_text())
    for number, place in enumerate([*places(manifest), ("new",), ("record", "new"), ("base", "new")]):
        copy = shutil.copytree(folder, tmp_path / str(number))
        added = place[-1] == "new"
        change = partial(put, place=place, new=1) if added else partial(remove, place=place)
        edit(copy / MANIFEST, change, sign=False)
        with pytest.raises(PrefixFormatError):
            Prefix.load(copy)


@settings(max_examples=100, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), name=st.sampled_from([TENSORS, MANIFEST]))
def test_any_other_byte_is_noticed_or_changes_nothing(original, tmp_path_factory, where, byte, name) -> None:
    folder, prefix = original
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "p")
    content = bytearray((copy / name).read_bytes())
    content[int(where * len(content))] = byte
    (copy / name).write_bytes(bytes(content))
    assert_refused_or_the_same(copy, prefix)


@pytest.mark.parametrize("form", ["plain", "svd"])
def test_an_older_format_is_read_with_a_note(tmp_path, form) -> None:
    prefix = saved(tmp_path / "p", form)
    old = make_old(tmp_path / "p")
    assert read_manifest(old)["version"] == (1 if form == "plain" else 2)
    with pytest.warns(OldFormatWarning, match=r"manifest\.json has an older format.*tensors, offset and merge alone"):
        loaded = Prefix.load(old)
    assert_same(loaded, prefix)
    assert_same(Prefix.load(loaded.save(old)), prefix)  # saved again it is new, and without a note


def test_an_older_format_without_a_length_is_read(tmp_path) -> None:
    old = make_old(small().save(tmp_path / "p"))
    edit(old / MANIFEST, lambda m: m.pop("length"), sign=False)
    with pytest.warns(OldFormatWarning):
        assert Prefix.load(old).length == 3
    edit(old / MANIFEST, lambda m: m.update(length=4), sign=False)
    with pytest.raises(PrefixFormatError, match="length is 3, the manifest says 4"):
        Prefix.load(old)


LOWERED: dict[str, tuple[Callable[[dict], object], str]] = {
    "version alone": (lambda m: m.update(version=1), "'content', which version 1 did not know"),
    "without the content": (lambda m: m.update(version=1, digest=m.pop("content")), "is of version 3"),
    "another record, too": (lambda m: m.update(version=2, digest=m.pop("content"), record={}), "is of version 3"),
    "no digest": (lambda m: m.pop("digest"), "'digest' must be a str"),
    "no content": (lambda m: m.pop("content"), "'content' must be a str"),
}


@pytest.mark.parametrize("way", LOWERED)
def test_a_new_prefix_does_not_pass_as_an_old_one(tmp_path, way) -> None:
    change, message = LOWERED[way]
    folder = small().save(tmp_path / "p")
    edit(folder / MANIFEST, change, sign=False)
    with pytest.raises(PrefixFormatError, match=message):
        Prefix.load(folder)


def test_show_says_so(tmp_path, capsys) -> None:
    from foreword.cli.main import execute

    folder = small().save(tmp_path / "p")
    assert execute(["show", str(folder)]) == 0
    assert "version 3" in capsys.readouterr().out
    with pytest.warns(OldFormatWarning):
        Prefix.load(make_old(folder))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *_, **__: None)
        assert execute(["show", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "version 1, whose digest covers" in shown


def named(name: Any) -> Prefix:
    return Prefix({name: small().slots["decoder.0"]}, 3, BASE)


UNSAVEABLE: dict[str, Callable[[], Prefix]] = {
    "offset of a float": lambda: Prefix(small().slots, 3.5, BASE),  # type: ignore[arg-type]
    "offset of a truth": lambda: Prefix(small().slots, True, BASE),
    "huge offset": lambda: Prefix(small().slots, 10**30, BASE),
    "negative offset": lambda: Prefix(small().slots, -1, BASE),
    "integer extra": lambda: Prefix(small().slots, 3, BASE, extras={"ids": torch.zeros(2, dtype=torch.long)}),
    "8 bits": lambda: Prefix({"a": KV(*(torch.zeros(1, 2, 3).to(torch.float8_e4m3fn),) * 2)}, 3, BASE),
    "record of NaN": lambda: Prefix(small().slots, 3, BASE, record={"loss": float("nan")}),
    "record of a set": lambda: Prefix(small().slots, 3, BASE, record={"names": {"a"}}),
    "record of bytes": lambda: Prefix(small().slots, 3, BASE, record={"names": b"a"}),
    "record named by numbers": lambda: Prefix(small().slots, 3, BASE, record={"by step": {1: 0.5}}),
    "record of half a pair": lambda: Prefix(small().slots, 3, BASE, record={"template": "\ud800"}),
    "deep record": lambda: Prefix(small().slots, 3, BASE, record={"a": deep(200)}),
    "very deep record": lambda: Prefix(small().slots, 3, BASE, record={"a": deep(100_000)}),
    "long record": lambda: Prefix(small().slots, 3, BASE, record={"a": "x" * 3_000_000}),
    "huge number": lambda: Prefix(small().slots, 3, BASE, record={"a": 10**5000}),
    "method of a number": lambda: Prefix(small().slots, 3, BASE, method=3),  # type: ignore[arg-type]
    "no base": lambda: Prefix(small().slots, 3, type(BASE)("a", "b", "64", 1, 1)),  # type: ignore[arg-type]
    **{
        f"slot called {name!r:.20}": partial(named, name)
        for name in ("", "a\0b", "a/b", "..\\b", "\ud800", "a\nb", "\x1b[31m", "extra.a", "x" * 300, 7, None)
    },
}


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("way", UNSAVEABLE)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, way) -> None:
    with pytest.raises(PrefixError):
        UNSAVEABLE[way]().save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_prefix_owns_its_memory(original, tmp_path) -> None:
    """The files are overwritten in place and cut off; a mapping would change, or end the process."""
    folder, prefix = original
    copy = shutil.copytree(folder, tmp_path / "p")
    loaded = Prefix.load(copy)
    with (copy / TENSORS).open("r+b") as file:
        file.write(b"\xff" * (copy / TENSORS).stat().st_size)
        file.flush()
        os.fsync(file.fileno())
    assert_same(loaded, prefix)


def test_a_file_that_is_cut_off_later_ends_nothing(tmp_path) -> None:
    """In a process of its own, which reading a mapping of the lost part would end with SIGBUS."""
    slots = {"decoder.0": KV(torch.randn(2, 512, 64), torch.randn(2, 512, 64))}  # many pages
    Prefix(slots, 3, BASE).save(tmp_path / "p")
    code = (
        "import os, sys; from foreword.prefix import Prefix\n"
        "prefix = Prefix.load(sys.argv[1]); digest = prefix.digest\n"
        "os.truncate(sys.argv[1] + '/prefix.safetensors', 0)\n"
        "assert prefix.digest == digest; print('whole')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "whole"), done.stderr


def test_the_tensors_are_checked_before_they_are_read(tmp_path) -> None:
    """The manifest says how large the file can be: a larger one is not read, however large it is."""
    folder = small().save(tmp_path / "p")
    with (folder / TENSORS).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(PrefixFormatError, match=r"has 1,099,511,627,776 bytes; at most [\d,]{4,8} are read"):
        Prefix.load(folder)


def test_files_of_one_prefix_are_equal_byte_for_byte(tmp_path) -> None:
    files = [small().save(tmp_path / name) for name in ("a", "b")]
    for name in (TENSORS, MANIFEST):
        assert len({(folder / name).read_bytes() for folder in files}) == 1


def test_another_file_of_tensors_is_noticed(tmp_path) -> None:
    folder = small().save(tmp_path / "p")
    tensors = load_file(folder / TENSORS)
    save_file(tensors, folder / TENSORS)  # the same, without a version: nothing is lost
    assert_same(Prefix.load(folder), small())
    save_file(tensors, folder / TENSORS, metadata={"version": "4"})
    with pytest.raises(PrefixFormatError, match="is of version 4, the manifest says 3"):
        Prefix.load(folder)
