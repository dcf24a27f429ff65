"""`Prefix` and its saved form: round trips, and every kind of damage refused by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foreword.errors import PrefixError, PrefixFormatError, PrefixMismatchError, StorageError, WeightsMismatchWarning
from foreword.prefix import KV, Prefix
from foreword.prefix.stored import MANIFEST, TENSORS
from prefix_helpers import BASE, assert_same, edit, small
from tiny import tiny_base, trained_like


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    offset=st.integers(0, 1000),
    record=st.dictionaries(
        st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(max_size=8), st.booleans())
    ),
)
def test_save_and_load_round_trip(tmp_path_factory, lengths, heads, widths, dtype, offset, record) -> None:
    slots = {
        f"decoder.{i}": KV(torch.randn(heads, n, widths[0]).to(dtype), torch.randn(heads, n, widths[1]).to(dtype))
        for i, n in enumerate(lengths)
    }
    prefix = Prefix(slots, offset, BASE, record=record)
    folder = tmp_path_factory.mktemp("prefix") / "p"
    assert_same(Prefix.load(prefix.save(folder)), prefix)


def test_saving_again_replaces_and_leaves_no_debris(tmp_path) -> None:
    small(3).save(tmp_path / "p")
    small(5).save(tmp_path / "p")
    assert Prefix.load(tmp_path / "p").length == 5
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [MANIFEST, TENSORS]


def test_saving_over_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(PrefixFormatError, match="not a saved prefix"):
        small().save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_folder_with_another_manifest_is_not_ours_to_replace(tmp_path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(PrefixFormatError, match="not a saved prefix"):
        small().save(tmp_path / "web")
    kept = small().save(tmp_path / "p")
    (kept / "NOTES.txt").write_text("mine")
    with pytest.raises(PrefixFormatError, match="not a saved prefix"):
        small(5).save(kept)
    assert (kept / "NOTES.txt").read_text() == "mine"
    assert Prefix.load(kept).length == 3


def test_a_failed_save_leaves_the_old_prefix(tmp_path, monkeypatch) -> None:
    small(3).save(tmp_path / "p")
    monkeypatch.setattr("foreword.prefix.stored.save_file", _disk_full)
    with pytest.raises(StorageError, match="No space"):
        small(5).save(tmp_path / "p")
    assert Prefix.load(tmp_path / "p").length == 3
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def _disk_full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


DAMAGE = {
    "version": (lambda m: m.update(version=99), "format version 99"),
    "format": (lambda m: m.update(format="lora"), "'format' must be"),
    "missing offset": (lambda m: m.pop("position_offset"), "'position_offset' must be"),
    "boolean offset": (lambda m: m.update(position_offset=True), "'position_offset' must be"),
    "other offset": (lambda m: m.update(position_offset=4), "content digest"),
    "negative offset": (lambda m: m.update(position_offset=-1), "position_offset must be an integer from 0"),
    "digest": (lambda m: m.update(digest="sha256:00"), "its digest is sha256"),
    "no digest": (lambda m: m.pop("digest"), "'digest' must be"),
    "content": (lambda m: m.update(content="sha256:00"), "content digest"),
    "length": (lambda m: m.update(length=4), "length is 3, the manifest says 4"),
    "offset of a float": (lambda m: m.update(position_offset=3.0), "'position_offset' must be"),
    "shape": (lambda m: m["slots"]["decoder.1"]["value"].update(shape=[2, 9, 4]), r"decoder\.1\.value is .*shape"),
    "dtype": (lambda m: m["slots"]["decoder.0"]["key"].update(dtype="float16"), r"decoder\.0\.key is"),
    "unknown dtype": (lambda m: m["slots"]["decoder.0"]["key"].update(dtype="int4"), "needs a 'shape' and a 'dtype'"),
    "missing slot": (lambda m: m["slots"].pop("decoder.1"), r"decoder\.1\.\w+', which the manifest does not name"),
    "surplus slot": (
        lambda m: m["slots"].update({"decoder.9": m["slots"]["decoder.0"]}),
        r"decoder\.9\.key, but it is not",
    ),
    "slot of nothing": (lambda m: m["slots"].update({"decoder.0": None}), "needs a 'shape'"),
    "merge": (lambda m: m.update(merge="magic"), "merge 'magic'"),
    "base": (lambda m: m["base"].pop("hidden_size"), r"base\.hidden_size"),
    "base field": (lambda m: m["base"].update(support=3), r"base\.support"),
}


def test_fields_of_a_newer_version_are_ignored(tmp_path) -> None:
    folder = small().save(tmp_path / "p")
    edit(folder, lambda m: (m.update(colour="red"), m["base"].update(colour="red")))
    assert Prefix.load(folder).digest == small().digest


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_wrong_manifest_is_refused_by_name(tmp_path, kind) -> None:
    change, message = DAMAGE[kind]
    folder = small().save(tmp_path / "p")
    edit(folder, change)
    with pytest.raises(PrefixFormatError, match=message):
        Prefix.load(folder)


def test_damaged_tensors_are_refused(tmp_path) -> None:
    folder = small().save(tmp_path / "p")
    whole = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PrefixFormatError, match="content digest"):
        Prefix.load(folder)
    (folder / TENSORS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PrefixFormatError, match="can't be read"):
        Prefix.load(folder)
    (folder / TENSORS).unlink()
    with pytest.raises(PrefixFormatError, match="incomplete"):
        Prefix.load(folder)
    with pytest.raises(PrefixFormatError, match="not a saved prefix"):
        Prefix.load(tmp_path / "nowhere")


def test_non_finite_tensors_are_refused_on_save_and_load(tmp_path) -> None:
    prefix = small()
    folder = prefix.save(tmp_path / "p")
    tensors = load_file(folder / TENSORS)
    tensors["decoder.0.key"][0, 0, 0] = float("nan")
    save_file(tensors, folder / TENSORS)
    with pytest.raises(PrefixFormatError, match=r"decoder\.0\.key holds NaN"):
        Prefix.load(folder)
    prefix.slots["decoder.1"].value[0, 0, 0] = float("inf")
    with pytest.raises(PrefixError, match=r"decoder\.1\.value holds NaN or infinity"):
        prefix.save(tmp_path / "q")
    assert not (tmp_path / "q").exists()


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_manifest_give_a_typed_error(tmp_path_factory, data) -> None:
    folder = small().save(tmp_path_factory.mktemp("fuzz") / "p")
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(PrefixFormatError):
        Prefix.load(folder)


def test_overflow_in_a_cast_is_refused() -> None:
    prefix = small()
    prefix.slots["decoder.0"].key[0, 0, 0] = 1e6
    with pytest.raises(PrefixError, match=r"decoder\.0\.key"):
        prefix.to(torch.float16)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({}, "at least one slot"),
        ({"decoder.0": KV(torch.zeros(2, 3), torch.zeros(2, 3))}, r"must be \[num_kv_heads, length, head_dim\]"),
        ({"decoder.0": KV(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))}, "disagree in heads or length"),
        ({"decoder.0": KV(torch.zeros(2, 3, 4).int(), torch.zeros(2, 3, 4).int())}, "floating point"),
    ],
)
def test_wrong_shapes_are_refused(slots, message) -> None:
    with pytest.raises(PrefixError, match=message):
        Prefix(slots, 3, BASE)


@pytest.mark.parametrize("merge", ["gated", "memory", "conditioned", "embedding"])
def test_extra_tensors_are_those_of_the_merge(merge) -> None:
    slots = small().slots if merge in ("gated", "conditioned") else {}
    with pytest.raises(PrefixError, match=f"of merge '{merge}' lacks"):
        Prefix(slots, 0, BASE, merge)
    with pytest.raises(PrefixError, match=r"at least one slot|has no keys"):
        Prefix({} if slots else small().slots, 0, BASE, merge)
    if merge == "gated":
        gates = {f"{name}.gate": torch.zeros(2) for name in slots}
        assert Prefix(slots, 0, BASE, merge, gates).additions.keys() == slots.keys()
        with pytest.raises(PrefixError, match=r"has no use for other"):
            Prefix(slots, 0, BASE, merge, gates | {"other": torch.zeros(2)})
        with pytest.raises(PrefixError, match=r"must be floating point of 1 dimensions"):
            Prefix(slots, 0, BASE, merge, {name: gate[None] for name, gate in gates.items()})


def test_digest_depends_on_content_alone() -> None:
    prefix = small()
    assert prefix.digest == prefix.with_record("mlp", {"other": 1}).digest
    assert prefix.digest != Prefix(prefix.slots, 4, BASE).digest
    assert prefix.digest != prefix.to(torch.float16).digest


def test_from_kv_and_from_text() -> None:
    base = tiny_base()
    text = Prefix.from_text("hello", base)
    assert text.length == text.position_offset == 5
    keys, values = zip(*text.slots.values(), strict=True)
    again = Prefix.from_kv(list(keys), list(values), base)
    assert_same(Prefix(again.slots, again.position_offset, again.base), Prefix(text.slots, 5, text.base))
    assert Prefix.from_text("hello", base, length=8).length == 8
    with pytest.raises(PrefixError, match="no tokens"):
        Prefix.from_text("", base)
    with pytest.raises(PrefixMismatchError, match=r"2 keys and 2 values, but .* 3 slots"):
        Prefix.from_kv(list(keys)[:2], list(values)[:2], base)
    with pytest.raises(PrefixMismatchError, match=r"decoder\.0.*\(2, 8\)"):
        Prefix.from_kv([key[..., :8] for key in keys], list(values), base)


def test_another_base_is_refused_and_other_weights_are_noted() -> None:
    base = tiny_base()
    prefix = trained_like(base, 4)
    with pytest.raises(PrefixMismatchError, match="hidden_size"), tiny_base(hidden_size=32).attach(prefix):
        pass
    with pytest.raises(PrefixMismatchError, match="model_type"), tiny_base("qwen2").attach(prefix):
        pass
    with pytest.warns(WeightsMismatchWarning, match="other weights"), tiny_base(seed=1).attach(prefix):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with base.attach(prefix):
            pass
