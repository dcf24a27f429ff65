"""`foreword compress` on the command line: table, JSON, picks, and errors in one line."""

from __future__ import annotations

import json

import pytest

from foreword.cli.main import execute
from foreword.prefix import Prefix
from tiny import byte_tokenizer, tiny_model


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, data, and a run whose prefix is in run/prefix, as the current one."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"input": f"q{i}", "target": "yes" if i % 2 else "no"} for i in range(30)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    flags = ["--model", "model", "--data", "train.jsonl", "--length", "8", "--steps", "4", "--lr", "0.02"]
    assert execute(["train", *flags, "--template", "{input}=", "--set", "trackers=[]", "--output", "run"]) == 0
    return tmp_path


FEW = ["compress", "run/prefix", "--choices", "int8,svd-2,drop-to-1/2+int8", "--max-new-tokens", "3"]


def test_it_prints_a_table_and_writes_nothing(place, capsys) -> None:
    before = sorted(place.rglob("*"))
    capsys.readouterr()
    assert execute(FEW) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if "%" in line]
    assert [line.split()[0] for line in lines] == ["uncompressed", "int8", "svd-2", "drop-to-1/2+int8"]
    assert "100%" in lines[0]
    assert "+0.00%" in lines[0]
    assert "picked" not in text
    assert sorted(place.rglob("*")) == before


def test_the_picked_one_works_everywhere(place, capsys) -> None:
    capsys.readouterr()
    flags = ["--keep-loss", "900%", "--output", "small", "--recover", "2", "--json"]
    assert execute([*FEW, *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["choice"]: row for row in report["choices"]}
    assert report["picked"] == min(list(rows)[1:], key=lambda name: rows[name]["bytes"])
    assert report["output"] == "small"
    assert rows["uncompressed"]["share"] == 1.0
    assert all(row["bleu"] is not None for row in rows.values())
    picked = rows[report["picked"]]
    assert sum(file.stat().st_size for file in (place / "small").iterdir()) == picked["bytes"]
    assert execute(["eval", "--data", "train.jsonl", "--prefix", "small", "--metrics", "loss", "--json"]) == 0
    capsys.readouterr()
    assert execute(["generate", "q1", "--prefix", "small", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert execute(["show", "small"]) == 0
    shown = capsys.readouterr().out
    assert "int8" in shown if "int8" in report["picked"] else "svd 2" in shown
    assert execute(["show", "small", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["version"] == 3
    assert shown["record"]["compression"]["choice"] == report["picked"]
    assert execute(["show", "run/prefix"]) == 0
    assert "plain" in capsys.readouterr().out


def test_max_kb_and_the_default_output(place, capsys) -> None:
    capsys.readouterr()
    assert execute([*FEW, "--no-bleu", "--max-kb", "1000"]) == 0
    text = capsys.readouterr().out
    assert "(picked)" in text
    assert "saved in run/prefix-compressed" in text
    assert Prefix.load(place / "run" / "prefix-compressed").position_offset == 8


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_if_nothing_fits_the_table_is_shown_all_the_same(place, capsys, as_json) -> None:
    capsys.readouterr()
    assert execute([*FEW, "--no-bleu", "--max-kb", "1", *as_json]) == 1
    captured = capsys.readouterr()
    assert "drop-to-1/2+int8" in captured.out
    *notes, error = captured.err.splitlines()
    assert error.startswith("error: none of the choices takes 1 KB or less; the smallest is ")
    assert all(note.startswith("note: train.jsonl: ") for note in notes)  # how its rows were read
    if as_json:
        assert json.loads(captured.out)["picked"] is None
    assert not (place / "run" / "prefix-compressed").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "not a saved prefix"),
        (["run/prefix", "--keep-loss", "1%", "--max-kb", "64"], 2, "not both"),
        (["run/prefix", "--keep-loss", "little"], 2, "must be a share such as 1%"),
        (["run/prefix", "--keep-loss", "-1%"], 2, "keep_loss: must be"),
        (["run/prefix", "--output", "x"], 2, "nothing is picked"),
        (["run/prefix", "--choices", "int4"], 2, "'int4' is not known"),
        (["run/prefix", "--max-kb", "9", "--output", "model"], 1, "not a saved prefix"),
        (["run/prefix", "--data", "nowhere.jsonl"], 1, "no such file"),
    ],
)
def test_errors_are_one_line(place, capsys, arguments, code, message) -> None:
    capsys.readouterr()
    assert execute(["compress", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1


def test_a_prefix_that_knows_no_data_says_so(place, capsys) -> None:
    prefix = Prefix.load(place / "run" / "prefix")
    prefix.with_record("kv", {}).save(place / "bare")
    capsys.readouterr()
    assert execute(["compress", "bare", "--model", "model"]) == 2
    assert "data: the prefix's record names none" in capsys.readouterr().err
    flags = ["--model", "model", "--data", "train.jsonl", "--template", "{input}=", "--no-bleu", "--choices", "int8"]
    assert execute(["compress", "bare", *flags]) == 0


def test_help(capsys) -> None:
    assert execute(["compress", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--keep-loss", "--max-kb", "--recover", "--choices", "--output", "--json", "--debug", "Example:"):
        assert flag in text
