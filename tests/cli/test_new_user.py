"""A new user's first hour, on the installed wheel: nothing is taken from the source tree.

`FOREWORD_PYTHON` names an interpreter of an environment with the wheel (`.ci/run` makes an empty one). Without it the
wheel is built and installed into a folder of its own, and what only extras bring can't be imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from signal_helpers import hearing
from test_light import BLOCK, PACKAGES
from tiny import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
TOPICS = ("parcel", "refund", "invoice", "password", "order", "voucher", "size", "colour", "delivery", "return")


def logs(answer: str) -> str:
    """Chat logs of two and four turns."""
    lines = []
    for number, topic in enumerate(TOPICS * 3):
        said = [
            {"role": "user", "content": f"Where is my {topic}?"},
            {"role": "assistant", "content": f"{answer} {topic}"},
            {"role": "user", "content": "Thanks"},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": said[: 2 + 2 * (number % 2)]}))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> list[str]:
    """The interpreter, with what makes `foreword` the wheel's."""
    if given := os.environ.get("FOREWORD_PYTHON"):
        return [given, "-m", "foreword"]
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    code = (
        BLOCK.format(blocked=set(PACKAGES))
        + f"sys.path.insert(0, {str(site)!r})\n"
        + f"import foreword; assert foreword.__file__.startswith({str(site)!r}), foreword.__file__\n"
        + "from foreword.cli.main import run; run()"
    )
    return [sys.executable, "-P", "-c", code]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    made: Path = tmp_path_factory.mktemp("home")
    tiny_model("llama").save_pretrained(made / "model")
    byte_tokenizer(chat=True).save_pretrained(made / "model")
    (made / "support.jsonl").write_text(logs("Today:"))
    (made / "pirate.jsonl").write_text(logs("Arr!"))
    rows = [
        {"prompt": f"Where is my {topic}?", "prefix": name} for topic in TOPICS[:3] for name in ("support", "pirate")
    ]
    (made / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


class User:
    """Types commands into a shell in their home folder."""

    def __init__(self, python: list[str], home: Path) -> None:
        self.python, self.home = python, home
        self.environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FOREWORD_DATA")
        } | {"FOREWORD_CACHE": str(home / "cache"), "COLUMNS": "80"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.python, *words], cwd=self.home, env=self.environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hearing,
        )  # fmt: skip

    def types(self, *words: str, keys: str = "") -> tuple[str, str]:
        """Run a command that succeeds; return what it printed, and its notes."""
        process = self.start(*words)
        out, err = process.communicate(keys, timeout=300)
        assert process.returncode == 0, (words, err[-2000:])
        return out, err


def wait_for_steps(history: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not (history.is_file() and history.read_text().count('"learning_rate"') > 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no step came"
        time.sleep(0.05)


def test_the_first_hour(python, home) -> None:
    user = User(python, home)
    model = ["--model", "model"]

    # train on chat logs, stop with Ctrl-C, and go on
    process = user.start("train", "--data", "support.jsonl", "--output", "runs/support", "--steps", "3000", *model)
    wait_for_steps(home / "runs/support/history.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "support.jsonl: messages, 2–4 turns; loss on assistant turns" in err
    assert "finishing this step and saving" in err
    assert "go on with --resume runs/support" in err
    assert "error:" not in err
    done = json.loads((home / "runs/support/history.jsonl").read_text().splitlines()[-1])["step"]
    assert 2 < done < 3000
    process = user.start("train", "--resume", "runs/support")
    wait_for_steps(home / "runs/support/history.jsonl", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)

    # a second prefix, to the end; the command that it prints works
    out, _ = user.types("train", "--data", "pirate.jsonl", "--output", "runs/pirate", "--steps", "8", *model)
    used = out.partition("use it")[2].split("foreword ", 1)[1].splitlines()[0]
    assert used == "generate --prefix runs/pirate/prefix 'your input'"
    user.types("generate", "--prefix", "runs/pirate/prefix", "your input", "--max-new-tokens", "4")

    # talk, and keep the conversation as a row
    keys = "Where is my hat?\n/prefix support\nAnd my boat?\n/save talk.jsonl\n"
    out, err = user.types(
        "chat", "--prefix", "runs/pirate", "--prefix", "runs/support", "--max-new-tokens", "8", keys=keys
    )
    assert "prefix: support" in err
    talk = json.loads((home / "talk.jsonl").read_text())["messages"]
    assert [message["role"] for message in talk] == ["user", "assistant"] * 2

    # a file whose rows name their prefix, both in one batch
    both = ["--prefix", "runs/support", "--prefix", "runs/pirate"]
    out, _ = user.types("generate", "--file", "questions.jsonl", *both, "--max-new-tokens", "6", "--json")
    mixed = json.loads(out)
    assert [entry["prefix"] for entry in mixed] == ["support", "pirate"] * 3
    for name in ("support", "pirate"):
        (home / "alone.jsonl").write_text(
            "".join(json.dumps(entry["input"]) + "\n" for entry in mixed if entry["prefix"] == name)
        )
        out, _ = user.types(
            "generate", "--file", "alone.jsonl", "--prefix", f"runs/{name}", "--max-new-tokens", "6", "--json"
        )
        alone = [entry["text"] for entry in json.loads(out)]
        assert alone == [entry["text"] for entry in mixed if entry["prefix"] == name]

    # measure it, beside the plain base
    evaluate = ["eval", "--data", "pirate.jsonl", "--metrics", "loss", "--json"]
    losses = [
        json.loads(user.types(*evaluate, *given)[0])["metrics"]["loss"]
        for given in (["--prefix", "runs/pirate/prefix"], model)
    ]
    assert losses[0] < losses[1]

    # look at it
    out, _ = user.types("show", "runs/pirate")
    for word in ("pirate.jsonl", "messages", "validation loss", "use it: foreword generate"):
        assert word in out
    assert str(home) not in out
