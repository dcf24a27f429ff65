"""Tables fit 80 columns without a broken word; `show` says how to use a prefix and never where its files were."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword.cli import demo, tables
from foreword.cli.main import app, execute
from foreword.demo.stdlib import Function
from foreword.demo.task import DemoData
from foreword.evaluation import EvalResult
from tiny import byte_tokenizer, tiny_model

WIDE, WIDTH, NARROW = 400, 80, 60
PASTED = ("use it", "bleu:", "chrf:")  # lines that are pasted are not wrapped


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("secret-place")
    before = Path.cwd()
    os.chdir(made)
    tiny_model("llama").save_pretrained("model")
    byte_tokenizer(chat=True).save_pretrained("model")
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(30)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["train", "--data", str(made / "rows.jsonl"), "--model", str(made / "model"), "--length", "3"]
    assert execute([*train, "--steps", "2", "--output", "run", "--lr", "0.25"]) == 0
    yield made
    os.chdir(before)


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def said(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert execute(list(arguments)) == 0
    out: str = capsys.readouterr().out
    return out


def words(text: str) -> set[str]:
    """The words of a text without rules; numbers are alike, since times and free space change."""
    return {re.sub(r"\d+", "0", word) for word in text.split() if set(word) - set("─━┃│┏┓┗┛┡┩└┘╇┳╈┴┯ ")}


def require_fit(text: str, width: int, wide: str) -> None:
    """No word is broken or cut, no line is longer than the terminal but for what is one word or pasted."""
    assert words(text) == words(wide)
    for line in text.splitlines():
        longest = max(map(len, line.split()), default=0)
        assert len(line.rstrip()) <= width or line.startswith(PASTED) or longest > width - 19, line


@pytest.mark.parametrize("width", [WIDTH, NARROW])
@pytest.mark.parametrize(
    "command",
    [
        "slots smollm2-135m", "slots model -v", "show run", "methods", "doctor",
        "eval --data rows.jsonl --prefix run --max-new-tokens 2",
        "compress run --choices svd-2,int8,merge-to-1/2+int8 --keep-loss 90% --max-new-tokens 2 --output NEW",
        "compress run --choices int8 --recover 1 --no-bleu",
    ],
)  # fmt: skip
def test_no_word_is_broken(folder, capsys, monkeypatch, command, width) -> None:
    printed = {}
    for columns in (width, WIDE):
        monkeypatch.setenv("COLUMNS", str(columns))
        printed[columns] = said(capsys, *command.replace("NEW", f"new-{width}-{columns}").split())
    require_fit(printed[width].replace(f"-{width}-{width}", ""), width, printed[WIDE].replace(f"-{width}-{WIDE}", ""))


@pytest.mark.parametrize("verb", sorted(str(command.name) for command in app.registered_commands))
def test_no_word_of_help_is_broken(capsys, monkeypatch, verb) -> None:
    printed = {}
    for columns in (WIDTH, NARROW, WIDE):
        monkeypatch.setenv("COLUMNS", str(columns))
        printed[columns] = said(capsys, verb, "--help")
        assert "\u2011" not in printed[columns], "what is pasted has plain hyphens"
    for width in (WIDTH, NARROW):
        require_fit(printed[width], width, printed[WIDE])
        assert max(map(len, printed[width].splitlines())) <= width


def test_no_word_of_the_demo_is_broken(capsys, monkeypatch) -> None:
    metrics = {"loss": 2.345, "perplexity": 12345.6, "rouge_l": 31.2, "bleu": 10.1}
    code = "def area(width, height):\n    return some_long_name_of_a_function(width) * height_in_centimetres(height)"
    function = Function("geometry", "area", code, "Return the area of a rectangle in square centimetres.")
    answers = ["Compute something rather long that needs more than one line of any narrow terminal."]
    contenders = {
        name: EvalResult(metrics, {}, answers, 1, 10) for name in ("plain base", "base + 3 examples", "prefix, trained")
    }
    printed = {}
    for columns in (WIDTH, NARROW, WIDE):
        monkeypatch.setenv("COLUMNS", str(columns))
        demo._print_table(contenders, 30)
        demo._print_answers(contenders, DemoData(Path("t"), Path("v"), Path("i"), (), (function,)), shown=1)
        printed[columns] = capsys.readouterr().out
    for width in (WIDTH, NARROW):
        require_fit(printed[width], width, printed[WIDE])
    assert "┃" in printed[WIDTH]
    assert "┃" not in printed[NARROW], "rows stand below each other where they don't fit"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["slots", "smollm2-135m"], ["decoder.0–29", "×30", "368,640", "flash", "head_dim", "parameters"]),
        (["slots", "smollm2-135m", "-v"], ["decoder.29", "model.layers.29.self_attn", "flash", "window"]),
        (["show", "run"], ["decoder.0–2", "rows.jsonl,", "0.25", "prompt/completion,", "key/value", "./model"]),
        (["methods"], ["conditioned", "1,105,920", "0.0687", "parameters", "saves"]),
    ],
)
def test_the_numbers_are_there(folder, capsys, command, expected) -> None:
    text = said(capsys, *command)
    for word in expected:
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", text), (word, text)


def test_a_word_longer_than_the_terminal_is_whole(capsys, monkeypatch) -> None:
    """Such as a path, which can be selected; the terminal itself breaks the line."""
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/very/long/path/" + "x" * 60
    tables.print_facts([("place", f"see {path} there"), ("\x1b[31m", "escaped\x1b, \n  indented")])
    printed = capsys.readouterr().out
    assert path in printed
    assert printed.endswith("\\x1b[31m  escaped\\x1b,\n            indented\n")


@pytest.mark.parametrize("command", ["show", "export", "compress", "eval", "generate"])
def test_a_run_stands_for_its_prefix(folder, capsys, command) -> None:
    """Every command that takes a prefix takes the folder of its run, with the same output."""
    more = {
        "export": ["--output", "cache"], "compress": ["--choices", "int8", "--no-bleu"],
        "eval": ["--data", "rows.jsonl", "--metrics", "loss"], "generate": ["q", "--max-new-tokens", "2"],
    }.get(command, [])  # fmt: skip
    printed = []
    for number, given in enumerate(("run", "run/prefix")):
        named = ["--prefix", given] if command in ("eval", "generate") else [given]
        ending = [part.replace("cache", f"{command}{number}") for part in more]
        printed.append(said(capsys, command, *named, *ending, "--json"))
    assert printed[0].replace("export0", "export1").replace('"run"', '"run/prefix"') == printed[1]


def test_a_run_begins_from_the_prefix_of_another(folder, capsys) -> None:
    given = ["--data", "rows.jsonl", "--model", "model", "--length", "3", "--steps", "1", "--init", "prefix"]
    for number, start in enumerate(("run", "run/prefix")):
        assert execute(["train", *given, "--init-prefix", start, "--output", f"next{number}"]) == 0
    first, second = (json.loads(Path(f"next{n}/config.json").read_text())["init_prefix"] for n in (0, 1))
    assert first == second == "run/prefix"


def test_equal_layers_are_one_line_and_each_is_shown_on_demand(folder, capsys) -> None:
    short, long = said(capsys, "slots", "smollm2-135m"), said(capsys, "slots", "smollm2-135m", "-v")
    assert short.count("decoder.") == 1
    assert long.count("decoder.") == 30


def test_layers_that_differ_are_told_apart(tmp_path, capsys) -> None:
    tiny_model("gemma2").save_pretrained(tmp_path / "model")
    text = said(capsys, "slots", str(tmp_path / "model"))
    assert [line.split()[0] for line in text.splitlines() if line.strip().startswith("decoder.")] == [
        "decoder.0", "decoder.1", "decoder.2",
    ]  # fmt: skip


def test_show_takes_a_run_and_says_how_to_use_it(folder, capsys) -> None:
    text = said(capsys, "show", "run")
    assert "use it: foreword generate --prefix run/prefix 'your input'" in text
    assert re.search(r"learning rate +0\.25", text)
    assert re.search(r"training data +rows\.jsonl, 27 rows", text)
    assert re.search(r"validation loss +\d+\.\d{4} → \d+\.\d{4} after step \d", text)
    assert re.search(r"saved +20\d\d-\d\d-\d\d \d\d:\d\d UTC", text)
    assert "secret-place" not in text
    assert said(capsys, "show", "run/prefix").split("\n")[1:-2] == text.split("\n")[1:-2]
    assert "secret-place" not in said(capsys, "show", "run", "--json")


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "--data", "rows.jsonl", "--metrics", "loss", "--prefix"],
        ["export", "--output", "out", "--to", "transformers"],
        ["compress", "--rows", "2", "--no-bleu", "--choices", "int8"],
        ["generate", "q", "--max-new-tokens", "2", "--prefix"],
        ["show"],
    ],
)
def test_a_run_stands_for_its_prefix_everywhere(folder, capsys, command) -> None:
    assert said(capsys, *command, "run")


def test_data_that_are_not_there_are_told_before_the_base_is_loaded(folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("foreword.cli.common.load_base", lambda *_: pytest.fail("loaded"))
    for arguments, problem in (
        (["train", "--model", "model"], "data: name a file of rows: --data FILE"),
        (["train", "--model", "model", "--data", "nothing.jsonl"], "nothing.jsonl: no such file or folder"),
        (["train", "--model", "model", "--data", "rows.jsonl", "--validation", "v.csv"], "v.csv: no such file"),
        (["train", "--model", "model", "--data", "*.csv"], "*.csv: no file matches"),
    ):
        assert execute(arguments) in (1, 2)
        assert problem in capsys.readouterr().err
