"""What other packages add by entry points: found, named in the record, and never in place of Foreword's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import foreword
from foreword import plugins
from foreword.errors import ConfigError, DependencyError
from foreword.export import EXPORTERS, export_prefix
from foreword.methods import METHODS, get_method
from foreword.objectives import OBJECTIVES, get_objective
from prefix_helpers import small
from tiny import tiny_base
from training_helpers import settings, write_rows

MODULE = """
from dataclasses import replace

from foreword.export import Exporter
from foreword.methods import METHODS
from foreword.objectives import Objective


class Halved(Objective):
    name = "halved"

    def losses(self, predictions, reference):
        return predictions.target_losses() / 2


class Digest(Exporter):
    name, summary = "digest", "only the digest"

    def refusal(self, prefix, base):
        return None if prefix.kind.is_cache else "it is no cache"

    def write(self, prefix, base, folder):
        (folder / "digest").write_text(prefix.digest)

    def usage(self, folder, base):
        return f"cat {folder}/digest"


METHOD = replace(METHODS["direct"], name="plugged", summary="direct by another name", default_lr=0.5)
"""
ENTRIES = {
    "foreword.methods": {"plugged": "METHOD", "direct": "METHOD"},
    "foreword.objectives": {"halved": "Halved", "cross-entropy": "Halved", "lost": "Nothing"},
    "foreword.exports": {"digest": "Digest", "transformers": "Digest"},
}


def install(folder: Path, name: str, version: str, entries: dict[str, dict[str, str]], module: str) -> None:
    """A package as pip leaves it: its module, and a dist-info folder that declares entry points."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, declared in entries.items()
        for line in (f"[{group}]", *(f"{entry} = {name}:{value}" for entry, value in declared.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.py").write_text(module)


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """A package that works, and one whose import fails."""
    place = tmp_path / "site"
    place.mkdir()
    install(place, "foreword_extra", "1.2", ENTRIES, MODULE)
    broken = {group: {"broken": "X"} for group in ENTRIES}
    install(place, "foreword_broken", "0.1", broken, "import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(place))
    yield
    for name in ("foreword_extra", "foreword_broken"):
        sys.modules.pop(name, None)


def test_a_method_an_objective_and_an_exporter_are_found(tmp_path) -> None:
    assert get_method("plugged").summary == "direct by another name"
    assert get_objective("halved").name == "halved"
    usage = export_prefix(small(), "digest", tmp_path / "out")
    assert usage == f"cat {tmp_path / 'out'}/digest"
    assert (tmp_path / "out" / "digest").read_text() == small().digest


def test_forewords_own_name_wins() -> None:
    assert get_method("direct") is METHODS["direct"]
    assert type(get_objective("cross-entropy")) is OBJECTIVES["cross-entropy"]
    assert plugins.find("foreword.exports", "to", EXPORTERS, "transformers") is EXPORTERS["transformers"]
    assert plugins.origin("foreword.methods", METHODS, "direct") is None
    assert plugins.origin("foreword.methods", METHODS, "plugged") == "foreword_extra 1.2"


def test_only_the_package_that_is_asked_for_is_imported() -> None:
    get_method("direct")
    assert "foreword_extra" not in sys.modules
    get_method("plugged")
    assert "foreword_extra" in sys.modules


def test_a_plugin_that_cannot_be_imported_is_named_with_its_package(tmp_path) -> None:
    reason = r"of the package foreword_broken 0\.1 can't be imported: .*a_package_that_nobody_has"
    with pytest.raises(DependencyError, match=f"method 'broken' {reason}"):
        get_method("broken")
    with pytest.raises(DependencyError, match=f"objective 'broken' {reason}"):
        get_objective("broken")
    with pytest.raises(DependencyError, match=f"to 'broken' {reason}"):
        export_prefix(small(), "broken", tmp_path / "out")
    with pytest.raises(DependencyError, match=r"objective 'lost' of the package foreword_extra 1\.2 .*Nothing"):
        get_objective("lost")


def test_an_unknown_names_error_lists_plugins_behind_forewords_own(tmp_path) -> None:
    methods = ", ".join([*METHODS, "broken", "plugged"])
    with pytest.raises(ConfigError, match=rf"method: 'lora' is not known; choose from {methods}$"):
        get_method("lora")
    with pytest.raises(ConfigError, match=r"objective: 'x' is not known; choose from cross-entropy, .*halved"):
        get_objective("x")
    with pytest.raises(ConfigError, match=r"to: 'x' is not known; choose from transformers, .*digest"):
        export_prefix(small(), "x", tmp_path / "out")
    with pytest.raises(ConfigError, match="is not known"):  # a name is never an import path
        get_method("foreword_extra:METHOD")
    assert "foreword_extra" not in sys.modules


def test_what_a_plugin_trained_names_package_and_version(tmp_path) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    result = foreword.train(base, settings(rows, objective="halved", method="plugged", steps=2, lr=None))
    wanted = {"method": "foreword_extra 1.2", "objective": "foreword_extra 1.2"}
    loaded = foreword.Prefix.load(result.run / "prefix")
    assert loaded.record["plugins"] == wanted
    assert loaded.record["config"]["objective"] == "halved"
    assert loaded.record["config"]["lr"] == 0.5
    only = foreword.train(base, settings(rows, "only", objective="halved", steps=2))
    assert only.prefix.record["plugins"] == {"objective": "foreword_extra 1.2"}
    own = foreword.train(base, settings(rows, "own", steps=2))
    assert "plugins" not in own.prefix.record
    stepped = [next(row["loss"] for row in run.history if "loss" in row) for run in (only, own)]
    assert stepped[0] == pytest.approx(stepped[1] / 2, rel=1e-6)


def test_a_run_with_an_unknown_objective_writes_nothing(tmp_path) -> None:
    rows = write_rows(tmp_path)
    with pytest.raises(ConfigError, match="objective: 'gone' is not known"):
        foreword.train(tiny_base(), settings(rows, "never", objective="gone"))
    assert not (rows / "never").exists()


def test_a_prefix_whose_plugin_is_not_installed_still_loads(tmp_path, monkeypatch) -> None:
    base, rows = tiny_base(), write_rows(tmp_path)
    run = foreword.train(base, settings(rows, objective="halved", method="plugged", steps=1)).run
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path / "site")])
    with pytest.raises(ConfigError, match="method: 'plugged' is not known"):
        get_method("plugged")
    assert base.generate(["a"], foreword.Prefix.load(run / "prefix"), max_new_tokens=2)
    manifest = json.loads((run / "prefix" / "manifest.json").read_text())
    assert manifest["record"]["plugins"]["method"] == "foreword_extra 1.2"
