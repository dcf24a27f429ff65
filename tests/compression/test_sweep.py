"""Recovery, the sweep and the rows it measures on, on a tiny model."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch

import foreword
from compression_helpers import CHOICES, config, trained
from foreword.compression import run
from foreword.compression.choices import UNCOMPRESSED, parse
from foreword.compression.data import load_rows, recorded_settings
from foreword.compression.forms import Compressed
from foreword.compression.mass import attention_mass
from foreword.compression.recover import divergence, recover
from foreword.compression.run import stored_bytes, sweep
from foreword.config import CompressConfig
from foreword.data.order import held_out
from foreword.errors import ConfigError, NonFiniteError, PositionError
from foreword.prefix import Prefix
from foreword.tasks.lm import collate
from rows_helpers import mean_loss
from tiny import tiny_base, trained_like
from training_helpers import settings, tensors


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def place(tmp_path_factory, base):
    return trained(tmp_path_factory.mktemp("rows"), base)


@pytest.fixture
def prefix(place) -> Prefix:
    return Prefix.load(place / "run" / "prefix")


def held_out_divergence(base, teacher: Prefix, student: Prefix, rows) -> float:
    with torch.no_grad():
        return float(divergence(base, teacher, student, collate(rows, base)))


@pytest.mark.parametrize("name", ["svd-1", "int8", "drop-to-1/4", "merge-to-1/4+int8"])
def test_recovery_lowers_the_divergence_from_the_whole_prefix(place, base, prefix, name) -> None:
    rows = load_rows(base, prefix, config(place), needs_training=True)
    mass = attention_mass(base, prefix, rows.training)
    student = parse(name).student(prefix, mass)
    start = student.finish()
    before = held_out_divergence(base, prefix, start.prefix, rows.validation)
    losses = recover(base, prefix, student, rows.training, steps=40, lr=0.06 if name != "int8" else 1e-4, batch_size=6)
    made = student.finish()
    after = held_out_divergence(base, prefix, made.prefix, rows.validation)
    assert len(losses) == 40
    assert 0 < after < 1.01 * before
    if name != "int8":  # which has next to nothing to win back
        assert after < 0.95 * before
        assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert set(made.encoding) == set(start.encoding)  # still stored in the same form
    for key, encoded in made.encoding.items():
        assert encoded.spec == start.encoding[key].spec
    assert held_out_divergence(base, prefix, prefix, rows.validation) == pytest.approx(0, abs=1e-6)


def test_recovery_is_seeded_and_leaves_the_teacher_alone(place, base, prefix) -> None:
    rows = load_rows(base, prefix, config(place), needs_training=True)
    before = {name: tensor.clone() for name, tensor in prefix.tensors()}
    made = []
    for seed in (1, 1, 2):
        student = parse("svd-2").student(prefix, {})
        recover(base, prefix, student, rows.training, steps=3, lr=0.01, batch_size=4, seed=seed)
        made.append(student.finish().prefix)
    assert all(torch.equal(tensor, before[name]) for name, tensor in prefix.tensors())
    assert all(torch.equal(one, tensors(made[1])[name]) for name, one in tensors(made[0]).items())
    assert not all(torch.equal(one, tensors(made[2])[name]) for name, one in tensors(made[0]).items())


def test_recovery_refuses_an_update_that_is_not_finite(place, base, prefix, monkeypatch) -> None:
    rows = load_rows(base, prefix, config(place), needs_training=True)
    student = parse("svd-2").student(prefix, {})
    before = [parameter.detach().clone() for parameter in student.parameters()]
    right = divergence
    monkeypatch.setattr("foreword.compression.recover.divergence", lambda *args: right(*args) * float("nan"))
    with pytest.raises(NonFiniteError, match=r"recovery step 1: .* \(rows .*train\.jsonl"):
        recover(base, prefix, student, rows.training, steps=3, lr=0.01, batch_size=4)
    assert all(torch.equal(one, other) for one, other in zip(before, student.parameters(), strict=True))


def test_a_sweep_measures_each_choice_as_it_is_loaded_again(place, base, prefix, tmp_path) -> None:
    seen: list[tuple[str, int, int]] = []
    rows = sweep(base, config(place), progress=lambda *update: seen.append(update))
    assert [row.choice for row in rows] == [UNCOMPRESSED, *CHOICES]
    assert [row.tokens for row in rows] == [8, 8, 8, 4, 4, 2, 4]
    assert seen[-1] == ("choices", 7, 7)
    folder = place / "run" / "prefix"
    assert rows[0].num_bytes == sum(file.stat().st_size for file in folder.iterdir())
    examples = load_rows(base, prefix, config(place), needs_training=False).validation
    assert len(examples) == 6
    for number, row in enumerate(rows):
        saved = row.compressed.prefix.save(tmp_path / str(number), row.compressed.encoding)
        assert row.num_bytes == sum(file.stat().st_size for file in saved.iterdir())
        loaded = Prefix.load(saved)
        assert mean_loss(base, examples, loaded, 16)[0] == pytest.approx(row.loss, rel=1e-5)
        assert loaded.position_offset == 8
        assert row.bleu is None
        if number:
            assert row.loss != rows[0].loss
            assert loaded.record["compression"]["choice"] == row.choice
            assert loaded.record["compression"]["uncompressed_loss"] == rows[0].loss
            assert loaded.record["validation_loss"] == row.loss
            assert loaded.record["config"] == prefix.record["config"]
    assert rows[0].loss == pytest.approx(prefix.record["validation_loss"], rel=1e-5)


def test_compressed_prefixes_run_beside_plain_ones(place, base, prefix, tmp_path) -> None:
    row = sweep(base, config(place, choices=("drop-to-1/2+int8",)))[1]
    loaded = Prefix.load(row.compressed.prefix.save(tmp_path / "p", row.compressed.encoding))
    ids = torch.randint(3, 250, (3, 7))
    with torch.no_grad():
        with base.attach([loaded, prefix, None]):
            mixed = base.model(ids).logits
        for number, one in enumerate([loaded, prefix, None]):
            with base.attach(one):
                assert torch.allclose(base.model(ids[number : number + 1]).logits[0], mixed[number], atol=1e-3)
        assert not torch.allclose(mixed[0], mixed[1], atol=0.1)
    assert base.generate(["t1"], loaded, max_new_tokens=3)


def test_bytes_shrink_by_what_is_promised(base) -> None:
    """Of a long prefix, where headers hardly count: half by int8, a quarter by a quarter of the tokens."""
    prefix = trained_like(base, 128).to(torch.float16)
    mass = {name: torch.rand(kv.key.shape[:2]) for name, kv in prefix.slots.items()}
    whole = stored_bytes(Compressed(prefix, {}))
    shares = {"int8": 1 / 2, "drop-to-1/4": 1 / 4, "drop-to-1/4+int8": 1 / 8, "svd-4": 4 * (128 + 32) / (128 * 32)}
    for name, share in shares.items():
        found = stored_bytes(parse(name).student(prefix, mass).finish()) / whole
        assert share < found < share + 0.12, name


def test_recovery_is_kept_only_where_it_helps(place, base, monkeypatch) -> None:
    plain = sweep(base, config(place, choices=("svd-1",)))[1]
    better = sweep(base, config(place, choices=("svd-1",), recover=40))[1]
    assert better.loss < plain.loss
    assert better.recovered == 40
    assert better.compressed.prefix.record["compression"]["recovery_steps"] == 40

    def spoil(base, teacher, student, examples, **_):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(10 * torch.randn_like(parameter))

    monkeypatch.setattr(run, "recover", spoil)
    kept = sweep(base, config(place, choices=("svd-1",), recover=40))[1]
    assert (kept.loss, kept.recovered, kept.note) == (plain.loss, 0, None)
    assert all(
        torch.equal(one, tensors(plain.compressed.prefix)[name])
        for name, one in tensors(kept.compressed.prefix).items()
    )

    def explode(*_, **__):
        raise NonFiniteError("recovery step 3: loss nan")

    monkeypatch.setattr(run, "recover", explode)
    kept = sweep(base, config(place, choices=("svd-1",), recover=40))[1]
    assert (kept.loss, kept.recovered) == (plain.loss, 0)
    assert kept.note is not None
    assert "step 3" in kept.note


def test_bleu_is_measured_where_it_is_wanted(place, base) -> None:
    rows = sweep(base, config(place, choices=("int8",), bleu=True, max_new_tokens=4))
    assert all(row.bleu is not None and 0 <= row.bleu <= 100 for row in rows)


def test_data_must_be_known(place, base, prefix) -> None:
    unknown = replace(prefix, record={})
    with pytest.raises(ConfigError, match="data: the prefix's record names none"):
        foreword.compress(base, CompressConfig(choices=("int8",)), unknown)
    valid = str(place / "valid.jsonl")
    with pytest.raises(ConfigError, match="data: recovery trains on training rows"):
        foreword.compress(base, CompressConfig(validation=valid, recover=3), unknown)
    with pytest.raises(ConfigError, match="output: name a folder"):
        foreword.compress(base, CompressConfig(validation=valid, keep_loss=0.1), unknown)
    rows = foreword.compress(
        base, CompressConfig(validation=valid, template="{input}=", choices=("drop-to-1/2",), bleu=False), prefix
    ).rows
    assert rows[0].loss == pytest.approx(prefix.record["validation_loss"], rel=1e-5)
    with pytest.raises(ConfigError, match="validation: the prefix was trained on every row"):
        foreword.compress(base, CompressConfig(data=str(place / "train.jsonl"), choices=("int8",)), prefix)


def test_the_record_says_what_the_settings_leave_open(place, base, prefix) -> None:
    folder = str(place / "run" / "prefix")
    rows = foreword.compress(base, CompressConfig(prefix=folder, choices=("int8",), bleu=False)).rows
    assert rows[0].loss == pytest.approx(prefix.record["validation_loss"], rel=1e-5)
    few = foreword.compress(base, CompressConfig(prefix=folder, choices=("int8",), bleu=False, validation_rows=2)).rows
    assert few[0].loss != rows[0].loss


def test_without_a_validation_file_the_rows_that_training_held_out_are_measured(place, base) -> None:
    run_of = settings(place, "split", validation=None, seed=3, steps=4, length=4)
    result = foreword.train(base, run_of)
    own = CompressConfig(
        **recorded_settings(result.prefix.record, result.run / "prefix"), choices=("int8",), bleu=False
    )
    rows = load_rows(base, result.prefix, own, needs_training=True)
    wheres = [int(example.where.rpartition(":")[2]) - 1 for example in rows.validation]
    assert wheres == held_out(24, 96, 3)
    assert len(wheres) == 2
    assert not {example.where for example in rows.training} & {example.where for example in rows.validation}
    others: tuple[dict[str, Any], ...] = ({"seed": 4}, {"validation_rows": 20})
    for other in others:  # neither lets a row in that was trained on
        again = load_rows(base, result.prefix, dataclasses.replace(own, **other), needs_training=True)
        assert [example.where for example in again.validation] == [example.where for example in rows.validation]
    fewer = load_rows(base, result.prefix, dataclasses.replace(own, validation_rows=1), needs_training=True)
    assert [example.where for example in fewer.validation] == [rows.validation[0].where]
    assert len(fewer.training) == len(rows.training)
    measured = foreword.compress(base, own, result.prefix).rows
    assert measured[0].loss == pytest.approx(result.validation_loss, rel=1e-5)


def test_a_cache_route_model_keeps_its_tokens_and_can_be_compressed(place) -> None:
    bloom = tiny_base("bloom")
    prefix = trained_like(bloom, 8)
    flags: dict[str, Any] = {
        "data": str(place / "train.jsonl"),
        "validation": str(place / "valid.jsonl"),
        "bleu": False,
    }
    rows = foreword.compress(bloom, CompressConfig(**flags, template="{input}="), prefix).rows
    assert [row.choice for row in rows][-1] == "int8"
    assert all(row.tokens == 8 for row in rows)
    with pytest.raises(PositionError, match="choose svd or int8"):
        foreword.compress(bloom, CompressConfig(**flags, choices=("drop-to-1/2",)), prefix)
