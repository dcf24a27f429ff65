"""What is picked of a sweep and where it is written, on a tiny model."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

import foreword
from compression_helpers import config, trained
from foreword.compression.choices import UNCOMPRESSED, default_names, parse
from foreword.compression.forms import Compressed
from foreword.compression.pick import MeasuredChoice, best_under, smallest_within
from foreword.config import CompressConfig
from foreword.errors import CompressionError, ConfigError, PrefixFormatError
from foreword.prefix import Prefix
from tiny import tiny_base, trained_like


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def place(tmp_path_factory, base):
    return trained(tmp_path_factory.mktemp("rows"), base)


@pytest.fixture
def prefix(place) -> Prefix:
    return Prefix.load(place / "run" / "prefix")


def figures(*triples: tuple[str, int, float]) -> list[MeasuredChoice]:
    nothing = Compressed(None, {})  # type: ignore[arg-type]
    return [MeasuredChoice(name, nothing, 8, size, loss, None) for name, size, loss in triples]


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
    assert result.picked is not None
    assert result.picked.choice == min(result.rows[1:], key=lambda row: row.num_bytes).choice
    assert result.output == tmp_path / "small"
    loaded = Prefix.load(tmp_path / "small")
    assert loaded.record["compression"]["choice"] == result.picked.choice
    again = foreword.compress(base, dataclasses.replace(settings, keep_loss=None, max_kb=1e6), prefix)
    assert again.picked is not None
    assert again.picked.loss == min(row.loss for row in again.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    only = foreword.compress(base, config(place, choices=("int8",)))
    assert (only.picked, only.output) == (None, None)


def test_the_pick_goes_beside_the_prefix_unless_it_is_told_otherwise(place, base) -> None:
    result = foreword.compress(base, config(place, choices=("int8",), max_kb=1e6))
    assert result.output == place / "run" / "prefix-compressed"
    assert Prefix.load(place / "run" / "prefix-compressed").length == 8


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
