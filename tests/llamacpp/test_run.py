"""`foreword run-llamacpp` with a real llama-server: right answers, or errors with a reason."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_helpers import call
from foreword.llamacpp.serving import Serving
from front_helpers import PROMPTS, answers, asked, fill, running, served


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("place")
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def expected(place) -> dict[str, list[str]]:
    return answers(place)


@pytest.fixture(scope="module")
def port(place) -> Iterator[int]:
    with running(place) as (_, port):
        yield port


@pytest.mark.llamacpp
def test_each_model_answers_as_foreword_does(port, expected) -> None:
    for index, prompt in enumerate(PROMPTS):  # one after another, so that slots go from prefix to prefix
        for model in ("one", "base", "two"):
            answer = asked(port, model, prompt)
            assert answer["choices"][0]["text"].strip() == expected[model][index]
            assert answer["usage"]["prompt_tokens"] == len(f"Q: {prompt}\nA:")
    assert expected["one"] != expected["two"] != expected["base"]


@pytest.mark.llamacpp
def test_requests_at_once_are_not_mixed_up(port, expected) -> None:
    wrong: list[Any] = []

    def ask(model: str, index: int) -> None:
        said = asked(port, model, PROMPTS[index])["choices"][0]["text"].strip()
        if said != expected[model][index]:
            wrong.append((model, index, said))

    threads = [
        threading.Thread(target=ask, args=(model, index)) for index in range(5) for model in ("one", "two", "base")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.llamacpp
def test_an_alias_that_was_read_as_text_does_no_harm(place, port, expected) -> None:
    """The trap of test_llamacpp: ask the plain base about the alias, then the prefix."""
    import foreword
    from foreword.export.alias import alias_of
    from tiny import byte_tokenizer

    prefix = foreword.Prefix.load(place / "one")
    alias = alias_of(prefix.digest, prefix.length, byte_tokenizer())
    for _ in range(3):  # more often than there are slots
        asked(port, "base", (alias.text or "") + "Q: abc\nA:")
        assert asked(port, "one", "abc")["choices"][0]["text"].strip() == expected["one"][0]


@pytest.mark.llamacpp
def test_chat_and_streams(port, expected) -> None:
    messages = [{"role": "user", "content": "abc"}]
    body = {"model": "one", "messages": messages, "max_tokens": 12}
    status, answer = call(port, "/v1/chat/completions", body)
    assert status == 200
    assert answer["choices"][0]["message"]["content"].strip() == expected["one"][0]
    for path, more in (("/v1/chat/completions", body), ("/v1/completions", {"model": "one", "prompt": "abc"})):
        events = streamed(port, path, more | {"stream": True, "max_tokens": 12})
        assert events[-1] == "[DONE]"
        choices = [json.loads(event)["choices"][0] for event in events[:-1]]
        text = "".join(choice["delta"]["content"] if "delta" in choice else choice["text"] for choice in choices)
        assert text.strip() == expected["one"][0]
        assert choices[-1]["finish_reason"] == "length"
        assert len(choices) > 3


def streamed(port: int, path: str, body: Any) -> list[str]:
    """The data of each event."""
    from urllib.request import Request, urlopen

    with urlopen(Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode()), timeout=60) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        return [line[6:].decode().strip() for line in answer if line.startswith(b"data: ")]


@pytest.mark.llamacpp
def test_bad_requests_get_a_reason(port) -> None:
    good = {"model": "one", "prompt": "x"}
    status, models = call(port, "/v1/models")
    assert (status, [entry["id"] for entry in models["data"]]) == (200, ["one", "two", "base"])
    assert call(port, "/health") == (200, {"status": "ok"})
    for body, expected, reason in (
        (b"{", 400, "the request is no JSON"),
        (b"[" * 100_000, 400, "the request is no JSON"),
        (b"\xff", 400, "the request is no JSON"),
        ([], 400, "must be a JSON object"),
        (good | {"model": "three"}, 404, "model 'three' is not served; choose from one, two, base"),
        (good | {"prompt": "x" * 70}, 400, "6 + 76 + 1 tokens, and there is room for 64"),
        (good | {"max_tokens": 1000}, 400, "there is room for 64"),
        (good | {"temperature": []}, 400, "temperature must be a number"),
    ):
        status, answer = call(port, "/v1/completions", body)
        assert status == expected
        assert reason in answer["error"]["message"]
    for path in ("/v1/nothing", "/v1/embeddings"):
        assert call(port, path, good)[0] == 404
    assert call(port, "/v1/nothing")[0] == 404


@pytest.mark.llamacpp
def test_what_is_no_http_gets_json_and_a_client_that_leaves_does_no_harm(port, expected) -> None:
    for sent, reason in (
        (b"NONSENSE\r\n\r\n", b"invalid_request_error"),
        (b"PUT /v1/models HTTP/1.1\r\n\r\n", b"Unsupported method"),
        (b"POST /v1/completions HTTP/1.1\r\n\r\n", b"Content-Length"),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"at most 16,777,216 are read"),
    ):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(sent)
            received = b"".join(iter(lambda: client.recv(4096), b""))
        assert reason in received
    body = json.dumps({"model": "one", "prompt": "abc", "stream": True, "max_tokens": 40}).encode()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            client.recv(10)
    assert asked(port, "one", "abc")["choices"][0]["text"].strip() == expected["one"][0]


@pytest.mark.llamacpp
def test_a_prefix_that_gets_lost_is_restored_again_or_the_answer_is_an_error(place, expected, monkeypatch) -> None:
    restore, kept = Serving._restore, {"skip": 1}

    def forgetful(self: Serving, served: Any, slot: int, erase: bool) -> None:
        if kept["skip"] > 0:
            kept["skip"] -= 1
            return
        restore(self, served, slot, erase)

    monkeypatch.setattr(Serving, "_restore", forgetful)

    def then(port: int) -> None:
        kept["skip"] = 0
        asked(port, "one", "abc")
        kept["skip"] = 1  # the slot still holds prefix, prompt and answer: more than the prefix is found
        assert asked(port, "one", "abc")["choices"][0]["text"].strip() == expected["one"][0]
        assert kept["skip"] == 0
        for stream in (False, True):
            kept["skip"] = 2
            status, answer = call(port, "/v1/completions", {"model": "one", "prompt": "abc", "stream": stream})
            assert (status, answer["error"]["type"]) == (500, "prefix_not_used")

    served(place, then)
