"""Recovery, the sweep and the pick, on a tiny model."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

import foreword
from foreword.compression import run
from foreword.compression.choices import UNCOMPRESSED, default_names, parse
from foreword.compression.data import load_rows, recorded_settings
from foreword.compression.forms import Compressed
from foreword.compression.mass import attention_mass
from foreword.compression.pick import Measured, best_under, smallest_within
from foreword.compression.recover import divergence, recover
from foreword.compression.run import stored_bytes, sweep
from foreword.config import CompressConfig
from foreword.data.order import held_out
from foreword.errors import CompressionError, ConfigError, NonFiniteError, PositionError, PrefixFormatError
from foreword.prefix import Prefix
from foreword.tasks.lm import collate, mean_loss
from tiny import tiny_base, trained_like
from training_helpers import settings, tensors, write_rows

CHOICES = ["svd-1", "int8", "drop-to-1/2", "merge-to-1/2", "drop-to-1/4+int8", "merge-to-1/2+svd-1"]


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def place(tmp_path_factory, base):
    """Rows, and a prefix trained on them."""
    folder = write_rows(tmp_path_factory.mktemp("rows"))
    foreword.train(base, settings(folder, length=8, steps=20, prefix_dtype="float16"))
    return folder


@pytest.fixture
def prefix(place) -> Prefix:
    return Prefix.load(place / "run" / "prefix")


def config(place, **changes) -> CompressConfig:
    recorded = recorded_settings(Prefix.load(place / "run" / "prefix").record)
    values = {"prefix": str(place / "run" / "prefix"), "bleu": False, "choices": tuple(CHOICES)}
    return CompressConfig(**(recorded | values | changes))


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
    losses = recover(base, prefix, student, rows.training, steps=40, lr=0.06 if name != "int8" else 1e-3, batch_size=6)
    made = student.finish()
    after = held_out_divergence(base, prefix, made.prefix, rows.validation)
    assert len(losses) == 40
    assert 0 < after < before
    if name != "int8":  # which has little to win back
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
    assert "step 3" in kept.note


def test_bleu_is_measured_where_it_is_wanted(place, base) -> None:
    rows = sweep(base, config(place, choices=("int8",), bleu=True, max_new_tokens=4))
    assert all(0 <= row.bleu <= 100 for row in rows)


def figures(*triples: tuple[str, int, float]) -> list[Measured]:
    nothing = Compressed(None, {})  # type: ignore[arg-type]
    return [Measured(name, nothing, 8, size, loss, None) for name, size, loss in triples]


TABLE = figures(
    (UNCOMPRESSED, 100_000, 2.0),
    ("int8", 60_000, 2.01),
    ("svd-8", 40_000, 2.1),
    ("svd-4", 20_000, 2.4),
    ("svd-99", 110_000, 1.9),
    ("broken", 1_000, float("nan")),
)


@pytest.mark.parametrize(
    ("share", "name"), [(0.01, "int8"), (0.049, "int8"), (0.05, "svd-8"), (0.2, "svd-4"), (9.0, "svd-4")]
)
def test_keep_loss_picks_the_smallest(share, name) -> None:
    assert smallest_within(TABLE, share).choice == name


@pytest.mark.parametrize(
    ("size", "name"), [(20, "svd-4"), (59.999, "svd-8"), (60, "int8"), (105, UNCOMPRESSED), (110, "svd-99")]
)
def test_max_kb_picks_the_lowest_loss(size, name) -> None:
    assert best_under(TABLE, size).choice == name


def test_nothing_fits_names_the_nearest() -> None:
    with pytest.raises(CompressionError, match=r"within 0\.10% of 2\.0000; the nearest is int8 with 2\.0100, \+0\.50%"):
        smallest_within(TABLE, 0.001)
    with pytest.raises(CompressionError, match=r"19 KB or less; the smallest is svd-4 with 20\.0 KB"):
        best_under(TABLE[:4], 19)
    with pytest.raises(CompressionError, match="none of the choices is smaller"):
        smallest_within([TABLE[0], TABLE[4]], 1.0)


def test_the_pick_is_written(place, base, prefix, tmp_path) -> None:
    settings = config(place, choices=("int8", "svd-1"), keep_loss=1e6, output=str(tmp_path / "small"))
    result = foreword.compress(base, settings)
    assert result.picked.choice == min(result.rows[1:], key=lambda row: row.num_bytes).choice
    assert result.output == tmp_path / "small"
    loaded = Prefix.load(result.output)
    assert loaded.record["compression"]["choice"] == result.picked.choice
    again = foreword.compress(base, dataclasses.replace(settings, keep_loss=None, max_kb=1e6), prefix)
    assert again.picked.loss == min(row.loss for row in again.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    only = foreword.compress(base, config(place, choices=("int8",)))
    assert (only.picked, only.output) == (None, None)


def test_the_pick_goes_beside_the_prefix_unless_it_is_told_otherwise(place, base) -> None:
    result = foreword.compress(base, config(place, choices=("int8",), max_kb=1e6))
    assert result.output == place / "run" / "prefix-compressed"
    assert Prefix.load(result.output).length == 8


def test_nothing_is_written_over_something_else(place, base, tmp_path, monkeypatch) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for name, error, message in (
        ("", PrefixFormatError, "not a saved prefix"),
        ("thesis.txt", PrefixFormatError, "not a saved prefix"),
    ):
        with pytest.raises(error, match=message):  # before anything is measured
            foreword.compress(base, config(place, keep_loss=0.1, output=str(tmp_path / name), data="nowhere.jsonl"))
    with pytest.raises(ConfigError, match="the uncompressed prefix itself"):
        foreword.compress(base, config(place, keep_loss=0.1, output=str(place / "run" / ".." / "run" / "prefix")))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(CompressionError, match="nearest"):
        foreword.compress(base, config(place, choices=("svd-1",), keep_loss=0.0, output=str(tmp_path / "p")))
    assert not (tmp_path / "p").exists()


def test_settings_that_do_not_go_together() -> None:
    for values, message in (
        ({"keep_loss": 0.1, "max_kb": 3.0}, "not both"),
        ({"output": "x"}, "nothing is picked"),
        ({"keep_loss": -0.1}, "keep_loss: must be"),
        ({"max_kb": float("nan")}, "max_kb: must be"),
        ({"recover": -1}, "recover: must be"),
    ):
        with pytest.raises(ConfigError, match=message):
            CompressConfig(**values)


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
        foreword.compress(base, CompressConfig(data=prefix.record["config"]["data"], choices=("int8",)), prefix)


def test_the_record_says_what_the_settings_leave_open(place, base, prefix) -> None:
    rows = foreword.compress(base, CompressConfig(choices=("int8",), bleu=False), prefix).rows
    assert rows[0].loss == pytest.approx(prefix.record["validation_loss"], rel=1e-5)
    few = foreword.compress(base, CompressConfig(choices=("int8",), bleu=False, validation_rows=2), prefix).rows
    assert few[0].loss != rows[0].loss


def test_without_a_validation_file_the_rows_that_training_held_out_are_measured(place, base) -> None:
    run_of = settings(place, "split", validation=None, seed=3, steps=4, length=4)
    result = foreword.train(base, run_of)
    own = CompressConfig(**recorded_settings(result.prefix.record), choices=("int8",), bleu=False)
    rows = load_rows(base, result.prefix, own, needs_training=True)
    wheres = [int(example.where.rpartition(":")[2]) - 1 for example in rows.validation]
    assert wheres == held_out(24, 96, 3)
    assert len(wheres) == 2
    assert not {example.where for example in rows.training} & {example.where for example in rows.validation}
    for other in ({"seed": 4}, {"validation_rows": 20}):  # neither lets a row in that was trained on
        again = load_rows(base, result.prefix, dataclasses.replace(own, **other), needs_training=True)
        assert [example.where for example in again.validation] == [example.where for example in rows.validation]
    fewer = load_rows(base, result.prefix, dataclasses.replace(own, validation_rows=1), needs_training=True)
    assert [example.where for example in fewer.validation] == [rows.validation[0].where]
    assert len(fewer.training) == len(rows.training)
    measured = foreword.compress(base, own, result.prefix).rows
    assert measured[0].loss == pytest.approx(result.validation_loss, rel=1e-5)


def test_only_softmax_prefixes_are_compressed(place, base, prefix) -> None:
    other = replace(prefix)
    object.__setattr__(other, "merge", "gated")
    with pytest.raises(CompressionError, match="merge 'gated' can't be compressed"):
        foreword.compress(base, config(place), other)


def test_choices_are_a_closed_registry(base) -> None:
    for name in ("svd", "svd-0", "int4", "drop-to-2/1", "drop-to-1/0", "int8+svd-3", "drop-to-1/2+", "svd-2+int8", "",
                 "drop-to-1/2+merge-to-1/2", "os.system", "drop-to-1/2+int8+int8"):  # fmt: skip
        with pytest.raises(ConfigError, match=r"choices: .* is not known"):
            parse(name)
    names = default_names(base, trained_like(base, 32))
    assert names[:4] == ["svd-4", "svd-8", "int8", "drop-to-1/2"]  # svd-16 saves nothing at 32 · 32
    assert [parse(name).name for name in names] == names
    assert default_names(base, trained_like(base, 1)) == ["int8"]
    bloom = tiny_base("bloom")
    assert {name.partition("-")[0] for name in default_names(bloom, trained_like(bloom, 8))} <= {"svd", "int8"}


def test_a_cache_route_model_keeps_its_tokens_and_can_be_compressed(place) -> None:
    bloom = tiny_base("bloom")
    prefix = trained_like(bloom, 8)
    flags = {"data": str(place / "train.jsonl"), "validation": str(place / "valid.jsonl"), "bleu": False}
    rows = foreword.compress(bloom, CompressConfig(**flags, template="{input}="), prefix).rows
    assert [row.choice for row in rows][-1] == "int8"
    assert all(row.tokens == 8 for row in rows)
    with pytest.raises(PositionError, match="choose svd or int8"):
        foreword.compress(bloom, CompressConfig(**flags, choices=("drop-to-1/2",)), prefix)
