"""Encoded tensors in a saved prefix: round trips, what they cost, and every kind of damage refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foreword.compression.forms import PLAIN, Compressed, Form, Student
from foreword.compression.int8 import Int8, encode, int8_form
from foreword.compression.svd import Svd
from foreword.errors import PrefixError, PrefixFormatError
from foreword.prefix import KV, Prefix
from foreword.prefix.encoding import MOST, Encoded
from foreword.prefix.stored import TENSORS, read_manifest
from prefix_helpers import BASE, assert_same, edit, small

FORMS: dict[str, Form] = {"int8": Int8(), "svd": Svd(2), "plain": PLAIN}


def compressed(kind: str = "int8", length: int = 6, dtype: torch.dtype = torch.float16) -> Compressed:
    return Student(small(length, dtype), lambda tensor: FORMS[kind]).finish()


def save(made: Compressed, path):
    return made.prefix.save(path, made.encoding)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    heads=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    kinds=st.lists(st.sampled_from(["plain", "int8", "svd"]), min_size=1, max_size=3),
    scale=st.sampled_from([1e-9, 1e-4, 1.0, 1e3]),
)
def test_encoded_round_trip(tmp_path_factory, lengths, heads, widths, dtype, kinds, scale) -> None:
    """Any mixture of forms comes back bit for bit."""
    slots = {
        f"decoder.{i}": KV(*((scale * torch.randn(heads, n, width)).to(dtype) for width in widths))
        for i, n in enumerate(lengths)
    }
    turns = iter(kinds * 8)
    forms = {"plain": lambda tensor: PLAIN, "int8": int8_form, "svd": lambda t: Svd(2) if t.numel() else PLAIN}
    made = Student(Prefix(slots, 3, BASE, record={"a": 1}), lambda tensor: forms[next(turns)](tensor)).finish()
    folder = save(made, tmp_path_factory.mktemp("prefix") / "p")
    assert_same(Prefix.load(folder), made.prefix)


@pytest.mark.parametrize("kind", ["int8", "svd"])
def test_manifest_names_the_encoding_and_the_digest_is_of_the_decoded(tmp_path, kind) -> None:
    made = compressed(kind)
    manifest = read_manifest(save(made, tmp_path / "p"))
    entry = manifest["slots"]["decoder.1"]["value"]
    assert entry == {"shape": [2, 6, 4], "dtype": "float16", "encoding": kind} | ({"rank": 2} if kind == "svd" else {})
    plain = made.prefix.save(tmp_path / "plain")
    assert manifest["content"] == made.prefix.digest == read_manifest(plain)["content"]
    assert "encoding" not in json.dumps(read_manifest(plain))


def test_stored_bytes_are_those_of_the_form(tmp_path) -> None:
    """Tensor bytes: 2 · H · m · d plain; H · d · (m + 2) as int8; 2 · r · (m + H · d) as factors."""
    sizes = {}
    for kind in FORMS:
        folder = save(compressed(kind, length=64), tmp_path / kind)
        sizes[kind] = sum(t.numel() * t.element_size() for t in load_file(folder / TENSORS).values())
    assert sizes["plain"] == 4 * (2 * 2 * 64 * 4)
    assert sizes["int8"] == 4 * (2 * 4 * (64 + 2))
    assert sizes["svd"] == 4 * (2 * 2 * (64 + 2 * 4))


def test_decoding_does_not_depend_on_how_products_are_summed() -> None:
    """The order is fixed: a decode equals a sum of single products in Python's own floats."""
    made = compressed("svd").encoding["decoder.0.key"]
    left, right = (made.parts[part].double().tolist() for part in ("left", "right"))
    by_hand = [[left[t][0] * right[0][c] + left[t][1] * right[1][c] for c in range(8)] for t in range(6)]
    expected = torch.tensor(by_hand, dtype=torch.float64).reshape(6, 2, 4).transpose(0, 1)
    assert torch.equal(made.decode([2, 6, 4], torch.float64), expected)


def test_an_encoding_must_be_that_of_its_tensor(tmp_path) -> None:
    made = compressed()
    other = {"decoder.0.key": encode(made.prefix.slots["decoder.1"].key)}
    with pytest.raises(PrefixError, match=r"decoder\.0\.key: its int8 encoding decodes to something else"):
        made.prefix.save(tmp_path / "p", other)
    for name in ("decoder.7.key", "extra.gate"):
        with pytest.raises(PrefixError, match=rf"no tensor '{name}'"):
            made.prefix.save(tmp_path / "p", {name: next(iter(made.encoding.values()))})
    assert not (tmp_path / "p").exists()


def test_extras_stay_plain_beside_encoded_slots(tmp_path) -> None:
    made = compressed()
    prefix = Prefix(made.prefix.slots, 6, BASE, extras={"embeddings": torch.randn(6, 3)})
    folder = prefix.save(tmp_path / "p", made.encoding)
    assert torch.equal(Prefix.load(folder).extras["embeddings"], prefix.extras["embeddings"])
    assert "extra.embeddings" in load_file(folder / TENSORS)


def entry(change):
    return lambda manifest: change(manifest["slots"]["decoder.0"]["key"])


DAMAGE = {
    "as version 1": (lambda m: (m.update(version=1), m.pop("content")), "can't be stored encoded here"),
    "as version 2": (lambda m: m.update(version=2), "'content', which version 2 did not know"),
    "version": (lambda m: m.update(version=4), r"version 4 is not readable here \(known: 1, 2, 3\)"),
    "boolean version": (lambda m: m.update(version=True), "version True"),
    "kind": (entry(lambda e: e.update(encoding="zip")), "encoding 'zip', which is not known"),
    "kind of nothing": (entry(lambda e: e.update(encoding=None)), "encoding None, which is not known"),
    "kind of list": (entry(lambda e: e.update(encoding=["svd"])), "is not known"),
    "other kind": (
        entry(lambda e: (e.update(encoding="int8"), e.pop("rank"))),
        r"decoder\.0\.key\.int8, but it is not",
    ),
    "no rank": (entry(lambda e: e.pop("rank")), "needs a 'rank' from 1 to 6"),
    "rank of text": (entry(lambda e: e.update(rank="2")), "needs a 'rank'"),
    "rank 0": (entry(lambda e: e.update(rank=0)), "needs a 'rank'"),
    "rank too high": (entry(lambda e: e.update(rank=7)), "needs a 'rank'"),
    "other rank": (entry(lambda e: e.update(rank=3)), r"decoder\.0\.key\.left is .*, the manifest says"),
    "plain": (entry(lambda e: (e.pop("encoding"), e.pop("rank"))), r"decoder\.0\.key, but it is not there"),
    "rank alone": (entry(lambda e: e.pop("encoding")), r"decoder\.0\.key, but it is not there"),
    "shape": (entry(lambda e: e.update(shape=[2, 5, 4])), r"decoder\.0\.key\.left is"),
    "heads": (entry(lambda e: e.update(shape=[4, 6, 2])), "content digest|disagree"),
    "two dimensions": (entry(lambda e: e.update(shape=[6, 8])), "can't have an encoding"),
    "huge": (entry(lambda e: e.update(shape=[1, MOST, 2])), "can't have an encoding"),
    "no tokens": (entry(lambda e: e.update(shape=[2, 0, 4])), "can't have an encoding"),
    "dtype": (entry(lambda e: e.update(dtype="float32")), r"decoder\.0\.key\.left is"),
    "surplus": (entry(lambda e: e.update(colour="red")), "'colour', which svd does not know"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_wrong_manifest_is_refused_by_name(tmp_path, kind) -> None:
    change, message = DAMAGE[kind]
    folder = save(compressed("svd"), tmp_path / "p")
    edit(folder, change)
    with pytest.raises(PrefixFormatError, match=message):
        Prefix.load(folder)


@pytest.mark.parametrize("part", ["int8", "scale"])
def test_damaged_parts_are_refused(tmp_path, part) -> None:
    folder = save(compressed("int8"), tmp_path / "p")
    tensors = load_file(folder / TENSORS)
    name = f"decoder.0.key.{part}"
    for wrong, message in (
        (tensors[name] + 1, "content digest"),
        (tensors[name][..., :1].contiguous(), f"{name} is"),
        (tensors[name].float(), f"{name} is"),
    ):
        save_file(tensors | {name: wrong}, folder / TENSORS)
        with pytest.raises(PrefixFormatError, match=message):
            Prefix.load(folder)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / TENSORS)
    with pytest.raises(PrefixFormatError, match=f"names {name}, but it is not there"):
        Prefix.load(folder)


def test_a_scale_of_infinity_is_refused(tmp_path) -> None:
    folder = save(compressed("int8"), tmp_path / "p")
    tensors = load_file(folder / TENSORS)
    tensors["decoder.1.value.scale"][0, 0, 0] = float("inf")
    save_file(tensors, folder / TENSORS)
    with pytest.raises(PrefixFormatError, match=r"decoder\.1\.value holds NaN or infinity"):
        Prefix.load(folder)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda x: st.lists(x, max_size=3))


@settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(["encoding", "rank", "shape", "dtype", "other"]),
    value=JSON | st.sampled_from(["svd", "int8", "float16", 1, 2]),
    kind=st.sampled_from(["int8", "svd"]),
)
def test_any_value_in_an_entry_is_the_right_one_or_a_typed_error(tmp_path_factory, field, value, kind) -> None:
    made = compressed(kind)
    folder = save(made, tmp_path_factory.mktemp("fuzz") / "p")
    edit(folder, entry(lambda e: e.update({field: value})))
    try:
        loaded = Prefix.load(folder)
    except PrefixFormatError:
        return
    assert_same(loaded, made.prefix)


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), kind=st.sampled_from(["int8", "svd"]))
def test_any_flipped_bit_is_noticed_or_changes_nothing(tmp_path_factory, at, bit, kind) -> None:
    """A bit of a factor may fall below the rounding of what is decoded; then the prefix is still the same."""
    made = compressed(kind)
    folder = save(made, tmp_path_factory.mktemp("fuzz") / "p")
    data = bytearray((folder / TENSORS).read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    (folder / TENSORS).write_bytes(bytes(data))
    try:
        loaded = Prefix.load(folder)
    except PrefixFormatError:
        return
    assert_same(loaded, made.prefix)


def test_a_loaded_prefix_is_plain_and_saves_plain(tmp_path) -> None:
    loaded = Prefix.load(save(compressed(), tmp_path / "p"))
    again = loaded.save(tmp_path / "q")
    assert "encoding" not in json.dumps(read_manifest(again)["slots"])
    assert_same(Prefix.load(again), loaded)


def test_encoded_keeps_its_parts() -> None:
    assert Encoded("int8", {"int8": torch.ones(1, 1, 1), "scale": torch.ones(1, 1, 1)}).spec == {"encoding": "int8"}
