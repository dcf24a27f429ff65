"""`init=prefix`: a run goes on exactly from a saved prefix of its own kind, and says so where it can't."""

from __future__ import annotations

from typing import Any

import pytest

import foreword
from foreword.errors import ConfigError
from foreword.methods import METHODS
from method_cases import OPTIONS
from tiny import tiny_base
from training_helpers import settings, write_rows

BASES: dict[str, dict[str, Any]] = {"llama": {}, "mistral": {"sliding_window": 8}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained prefix of every method, on a decoder and on one where prompts are inserted."""
    made, rows = {}, write_rows(tmp_path_factory.mktemp("rows"))
    for kind, changes in BASES.items():
        base = tiny_base(kind, **changes)
        for name in METHODS:
            config = settings(rows, f"{kind}-{name}", method=name, options=OPTIONS.get(name, {}), steps=12, lr=0.05)
            made[kind, name] = foreword.train(base, config)
    return rows, made


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", BASES)
def test_goes_on_where_it_stopped(trained, kind, name) -> None:
    rows, made = trained
    base = tiny_base(kind, **BASES[kind])
    before = made[kind, name]
    config = settings(
        rows, f"on-{kind}-{name}", method=name, options=OPTIONS.get(name, {}), steps=1, lr=1e-6,
        init="prefix", init_prefix=str(before.run / "prefix"),
    )  # fmt: skip
    after = foreword.train(base, config)
    assert after.history[0]["validation_loss"] == pytest.approx(before.validation_loss, rel=1e-4)
    assert before.validation_loss < before.history[0]["validation_loss"] - 1e-3


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", BASES)
def test_another_kind_is_refused_by_name(trained, kind, name) -> None:
    rows, made = trained
    base = tiny_base(kind, **BASES[kind])
    wanted = METHODS[name].kind(base.model).name
    for other in METHODS:
        merge = made[kind, other].prefix.merge
        if merge == wanted or (merge, wanted) == ("softmax", "conditioned"):
            continue
        config = settings(
            rows, "never", method=name, options=OPTIONS.get(name, {}), init="prefix",
            init_prefix=str(made[kind, other].run / "prefix"),
        )  # fmt: skip
        with pytest.raises(ConfigError, match=f"init_prefix: .* joins attention by '{merge}'; method {name}"):
            foreword.train(base, config)
        assert not (rows / "never").exists()


def test_a_network_of_another_size_is_refused(trained) -> None:
    rows, made = trained
    prefix = str(made["llama", "conditioned"].run / "prefix")
    config = settings(rows, "never", method="conditioned", options={"rank": 5}, init="prefix", init_prefix=prefix)
    with pytest.raises(ConfigError, match=r"init_prefix: its condition\.left is \(4, 3\)"):
        foreword.train(tiny_base(), config)
