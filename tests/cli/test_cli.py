"""The command line, in process on a tiny model: outputs, JSON, exit codes, one-line errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

import foreword
from foreword.cli.main import execute
from foreword.prefix import Prefix
from tiny import tiny_model


def test_train_show_generate_eval(place, capsys, monkeypatch) -> None:
    assert (
        execute(["train", "run.yaml", "--length", "4", "--template", r"{input}\n>", "--output", "out", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 2
    config = json.loads((place / "out" / "config.json").read_text())
    assert (config["length"], config["lr"], config["template"]) == (4, 0.01, "{input}\n>")
    prefix = report["prefix"]
    assert execute(["show", prefix]) == 0
    assert "virtual tokens" in capsys.readouterr().out
    assert execute(["show", prefix, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"]["model_type"] == "llama"
    assert execute(["generate", "q1", "q2", "--prefix", prefix, "--max-new-tokens", "3", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["input"] for answer in answers] == ["q1", "q2"]
    (place / "inputs.txt").write_text("q1\nq2\n")
    for arguments, stdin in ((["--file", "inputs.txt"], ""), ([], "q1\nq2\n")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        assert execute(["generate", *arguments, "--prefix", prefix, "--max-new-tokens", "3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == answers
    assert (
        execute(
            [
                "eval",
                "--data",
                "train.jsonl",
                "--prefix",
                prefix,
                "--metrics",
                "loss,bleu",
                "--max-new-tokens",
                "3",
                "--answers",
                "a.txt",
                "--json",
            ]
        )
        == 0
    )
    measured = json.loads(capsys.readouterr().out)
    assert set(measured["metrics"]) == {"loss", "bleu"}
    assert len((place / "a.txt").read_text().splitlines()) == 20
    assert execute(["eval", "--data", "train.jsonl", "--model", "model", "--metrics", "loss"]) == 0
    assert "20 rows" in capsys.readouterr().out


def test_resume_takes_the_runs_own_settings(place, capsys) -> None:
    assert execute(["train", "run.yaml", "--output", "out"]) == 0
    capsys.readouterr()
    assert execute(["train", "--resume", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert execute(["train", "--resume", "out", "--batch-size", "3"]) == 1
    assert "batch_size 16, not 3" in capsys.readouterr().err


def test_brackets_and_own_fields(place, capsys) -> None:
    """Template text that looks like markup; fields by other names, which eval takes from the prefix."""
    rows = [{"code": f"c{i}", "summary": "s"} for i in range(20)]
    (place / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"code": 1}\n')
    flags = [
        "--data",
        "own.jsonl",
        "--template",
        "[INST] {code} [/INST]",
        "--set",
        "target_field=summary",
        "--set",
        "lr=0.02",
    ]
    assert execute(["train", "run.yaml", *flags, "--output", "out[x]", "--max-bad-rows", "1"]) == 0
    assert "own.jsonl:21" in capsys.readouterr().err
    assert json.loads((place / "out[x]" / "config.json").read_text())["lr"] == 0.02
    assert execute(["show", "out[x]/prefix"]) == 0
    text = capsys.readouterr().out
    assert "[INST] {code} [/INST]" in text
    assert "out[x]" in text
    flags = ["--data", "own.jsonl", "--metrics", "loss", "--max-bad-rows", "1", "--json"]
    assert execute(["eval", *flags, "--prefix", "out[x]/prefix"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 20


def test_numbered_run_folders(place, capsys) -> None:
    for number in (1, 2):
        assert execute(["train", "run.yaml", "--steps", "1"]) == 0
        assert Prefix.load(place / "runs" / f"train-direct-{number}" / "prefix").length == 3


def test_slots(place, capsys) -> None:
    (place / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16}))
    assert execute(["slots", "config.json", "--length", "100"]) == 0
    text = capsys.readouterr().out
    assert "4,915,200 parameters" in text
    assert "positions end at 1024" in text
    assert execute(["slots", "model", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [slot["name"] for slot in listed["slots"]] == ["decoder.0", "decoder.1", "decoder.2"]
    assert listed["parameters"] == 2 * 3 * 32 * 2 * 16


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--data", "nowhere.jsonl", "--model", "model"], 1, "error: nowhere.jsonl: no such file"),
        (["train", "run.yaml", "--method", "lora"], 2, "error: method: 'lora' is not known"),
        (["train", "run.yaml", "--set", "lenght=3"], 2, "did you mean 'length'"),
        (["train", "run.yaml", "--set", "nonsense"], 2, "must be NAME=VALUE"),
        (["train", "run.yaml", "--lr", "-1"], 2, "lr: must be above 0"),
        (["train", "run.yaml", "--lr", "fast"], 2, "Invalid value for '--lr'"),
        (["train", "--zzz"], 2, "No such option"),
        (["generate", "x", "--prefix", "nowhere"], 1, "not a saved prefix"),
        (["generate", "x", "--file", "y"], 2, "not both"),
        (["show", "nowhere"], 1, "not a saved prefix"),
        (["slots", "nobody/nothing"], 1, "no readable configuration"),
        (["eval", "--data", "train.jsonl", "--metrics", "blue"], 2, "'blue' is not known"),
        (["demo", "--output", "model"], 2, "not empty"),
        (["demo", "--output", "run.yaml"], 2, "not empty"),
        (["eval", "--data", "train.jsonl", "--metrics", "loss", "--answers", "a.txt"], 2, "without a text metric"),
        (["eval", "--data", "train.jsonl", "--answers", "no/a.txt"], 2, "no is not a folder"),
        (["train", "run.yaml", "--set", "lr=-1"], 2, "lr: must be above 0"),
    ],
)
def test_errors_are_one_line_and_not_zero(place, capsys, arguments, code, message) -> None:
    assert execute(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    if code == 1:
        said = captured.err.strip().splitlines()
        assert [line for line in said if not line.startswith("reading the configuration of ")] == said[-1:]


def test_debug_shows_the_traceback(place) -> None:
    from foreword.errors import PrefixFormatError

    with pytest.raises(PrefixFormatError):
        execute(["show", "nowhere", "--debug"])


def test_unexpected_errors_are_one_line_too(place, capsys, monkeypatch) -> None:
    monkeypatch.setattr("foreword.prefix.Prefix.load", lambda path: 1 / 0)
    assert execute(["show", "x"]) == 1
    assert capsys.readouterr().err == "unexpected ZeroDivisionError: division by zero (--debug shows more)\n"


def test_ctrl_c_is_130(place, capsys, monkeypatch) -> None:
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("foreword.prefix.Prefix.load", interrupt)
    assert execute(["show", "x"]) == 130


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("jamba", ["no slot in layers 0, 2"]),
        ("bloom", ["through past_key_values", "no activation checkpointing", "no static cache"]),
        ("deepseek_v3", ["24/12", "flash (padded widths)"]),
        ("t5", ["encoder.0–2", "decoder.0–2", "cross.0–2"]),
        ("bert", ["positions end at 256; a prefix takes none of them"]),
    ],
)
def test_slots_say_what_is_special(kind, said, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    tiny_model(kind).config.save_pretrained(tmp_path)
    assert execute(["slots", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in said), printed


@pytest.mark.parametrize(
    "verb", ["demo", "train", "generate", "eval", "slots", "show", "doctor", "methods", "compress"]
)
def test_help_is_there_for_each_command(verb, capsys) -> None:
    assert execute([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "--debug" in text


def test_train_has_the_promised_flags(capsys) -> None:
    execute(["train", "--help"])
    text = capsys.readouterr().out
    for flag in [
        "model",
        "data",
        "validation",
        "template",
        "method",
        "length",
        "init",
        "init-text",
        "steps",
        "epochs",
        "batch-size",
        "lr",
        "seed",
        "output",
        "resume",
    ]:
        assert f"--{flag} " in text.replace("\n", " ")


def test_the_installed_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "foreword", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("foreword 0.")


@pytest.mark.smollm2
def test_demo_in_short(smollm2, tmp_path, capsys, monkeypatch) -> None:
    """Two steps on the real model: everything the demo prints is there, and step 2 beats step 0."""
    assert execute(["demo", "--steps", "2", "--rows", "5", "--output", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    for expected in ("validation loss", "perplexity", "ROUGE-L", "BLEU", "plain base", "base + instruction",
                     "base + 3 examples", "prefix, step 0", "prefix, trained", "prefix saved in", "next:"):  # fmt: skip
        assert expected in text
    prefix = Prefix.load(tmp_path / "demo" / "run" / "prefix")
    assert prefix.length == 32
    training, validation = (
        {json.loads(line)["where"].split(".")[0] for line in (tmp_path / "demo" / name).read_text().splitlines()}
        for name in ("train.jsonl", "valid.jsonl")
    )
    assert validation
    assert not training & validation


def test_a_head_of_another_template_keeps_its_template(place, capsys) -> None:
    """`eval --prefix A --head B` reads rows as B was trained to read them, whatever A's template is."""
    rows = "".join(json.dumps({"text": f"t{i}", "label": ("no", "yes")[i % 2]}) + "\n" for i in range(20))
    (place / "labelled.jsonl").write_text(rows)
    common = ["--model", "model", "--data", "labelled.jsonl", "--task", "seq-cls", "--length", "3", "--steps", "2"]
    for name, template in (("a", "{text}"), ("b", "A much longer question about {text}?")):
        arguments = ["train", *common, "--template", template, "--output", name, "--trackers", ""]
        assert execute(arguments) == 0
    capsys.readouterr()
    losses = {}
    for prefix, head in (("a", "b"), ("b", "b"), ("a", "a")):
        arguments = ["eval", "--data", "labelled.jsonl", "--prefix", f"{prefix}/prefix", "--head", f"{head}/head"]
        assert execute([*arguments, "--metrics", "loss", "--json"]) == 0
        losses[prefix, head] = json.loads(capsys.readouterr().out)["metrics"]["loss"]
    base = foreword.load(place / "model", device="cpu")
    request = foreword.EvalConfig(
        data="labelled.jsonl", head="b/head", prefix="a/prefix", template="A much longer question about {text}?",
        metrics=("loss",),
    )  # fmt: skip
    assert losses["a", "b"] == pytest.approx(foreword.evaluate(base, request).metrics["loss"])
    assert losses["a", "b"] != pytest.approx(losses["a", "a"])
