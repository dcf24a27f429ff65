"""A conversation: what is asked of the base, prefixes that change within it, and commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.base.asking import prepare
from foreword.chat import Session
from foreword.chat.commands import HELP, Leave, run
from foreword.errors import ConfigError, ForewordError, PrefixMismatchError
from tiny import tiny_base, trained_like

OPTIONS: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture
def session() -> Session:
    base = tiny_base(chat=True)
    return Session(base, {"one": trained_like(base, 5, seed=1), "two": trained_like(base, 5, seed=2)}, "s", OPTIONS)


def say(session: Session, text: str) -> str:
    return "".join(session.answer(text)).strip()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_each_turn_is_asked_with_all_before_it(session) -> None:
    first = say(session, "q1")
    talk = [{"role": "system", "content": "s"}, user("q1")]
    assert first == session.base.generate([talk], session.prefixes["one"], **OPTIONS)[0]
    talk += [{"role": "assistant", "content": first}, user("q2")]
    assert say(session, "q2") == session.base.generate([talk], session.prefixes["one"], **OPTIONS)[0]
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2


def test_the_prefix_changes_within_the_conversation(session) -> None:
    first = say(session, "q1")
    assert run(session, "/prefix two") == "prefix: two"
    talk = [{"role": "system", "content": "s"}, user("q1"), {"role": "assistant", "content": first}, user("q2")]
    assert say(session, "q2") == session.base.generate([talk], session.prefixes["two"], **OPTIONS)[0]
    assert run(session, "/prefix none") == "prefix: none"
    assert session.prefix is None
    assert run(session, "/prefix") == "one  two  [none]"


def test_a_prefix_from_a_folder_or_a_run(session, tmp_path) -> None:
    three = trained_like(session.base, 4, seed=3)
    three.save(tmp_path / "runs" / "three" / "prefix")
    assert run(session, f"/prefix {tmp_path}/runs/three") == "prefix: three"
    assert session.prefix == session.prefixes["three"]
    assert run(session, "/prefix one") == "prefix: one"
    assert run(session, f"/prefix {tmp_path}/runs/three/prefix") == "prefix: three"


def test_a_prefix_that_is_not_there_or_does_not_fit(session, tmp_path) -> None:
    with pytest.raises(ConfigError, match="'three' is not known; there are one, two, none, or give a folder"):
        run(session, "/prefix three")
    trained_like(tiny_base("gpt2"), 4).save(tmp_path / "other" / "prefix")
    with pytest.raises(PrefixMismatchError):
        run(session, f"/prefix {tmp_path}/other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForewordError):
        run(session, f"/prefix {tmp_path}/empty")
    assert (session.name, list(session.prefixes)) == ("one", ["one", "two"])


def test_system_and_reset(session) -> None:
    say(session, "q1")
    assert run(session, "/reset") == "forgotten"
    assert run(session, "/system  be brief ") == "system: be brief"
    expected = session.base.generate(
        [[{"role": "system", "content": "be brief"}, user("q2")]], session.prefixes["one"], **OPTIONS
    )
    assert [say(session, "q2")] == expected
    assert run(session, "/system") == "no system text"
    run(session, "/reset")
    assert [say(session, "q2")] == session.base.generate(["q2"], session.prefixes["one"], **OPTIONS)


def test_what_is_saved_is_a_row_of_training(session, tmp_path) -> None:
    with pytest.raises(ConfigError, match="nothing was said yet"):
        run(session, f"/save {tmp_path}/talk.jsonl")
    answer = say(session, "q1")
    assert run(session, f"/save {tmp_path}/talk.jsonl") == f"saved as a row of {tmp_path}/talk.jsonl"
    run(session, f"/save {tmp_path}/talk.jsonl")
    rows = [json.loads(line) for line in Path(tmp_path, "talk.jsonl").read_text().splitlines()]
    said = [{"role": "system", "content": "s"}, user("q1"), {"role": "assistant", "content": answer}]
    assert rows == [{"messages": said}] * 2
    with pytest.raises(ConfigError, match="name a file"):
        run(session, "/save")


def test_an_answer_that_is_left_is_remembered_as_far_as_it_went(session) -> None:
    session.options = {"max_new_tokens": 200, "min_new_tokens": 200}
    pieces = session.answer("q1")
    first = next(pieces)
    pieces.close()
    assert session.messages == [user("q1"), {"role": "assistant", "content": first.strip()}]


def test_a_prefix_of_single_inputs_answers_each_alone() -> None:
    base = tiny_base(chat=True)
    alone = trained_like(base, 5).with_record("direct", {"template": "Q: {input}\nA:"})
    fields = trained_like(base, 5).with_record("direct", {"template": "{a} {b}"})
    session = Session(base, {"alone": alone, "fields": fields}, options=OPTIONS)
    assert not session.remembers
    for text in ("q1", "q2"):
        assert [say(session, text)] == base.generate([text], alone, **OPTIONS)
    assert run(session, "/prefix none") == "prefix: none"
    assert "answers each text alone" in run(session, "/prefix alone")
    run(session, "/prefix fields")
    before = list(session.messages)
    with pytest.raises(ConfigError, match="is one text, but the template"):
        say(session, "q3")
    assert session.messages == before


def test_other_commands(session) -> None:
    assert run(session, "/help") == HELP
    with pytest.raises(Leave):
        run(session, "/exit")
    with pytest.raises(ConfigError, match="/nonsense: is no command; /help lists them"):
        run(session, "/nonsense x")


def test_without_prefixes_the_base_answers() -> None:
    base: Any = tiny_base(chat=True)
    session = Session(base, {}, options=OPTIONS)
    assert (session.name, session.prefix) == ("none", None)
    assert [say(session, "q")] == base.generate(["q"], **OPTIONS)
    assert prepare(base, ["q"], [None], None) == prepare(base, [[user("q")]], [None], None)
