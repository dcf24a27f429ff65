"""The front: HTTP requests in the form of OpenAI's API, answered by `Serving`. Errors are JSON with a reason."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any, cast

from foreword import __version__
from foreword.errors import ConfigError, ForewordError
from foreword.llamacpp.questions import Question, Unanswered, read_question
from foreword.llamacpp.serving import Piece, Serving

MOST_BYTES = 16 * 2**20  # of a request
_ROUTES = {"/v1/completions": False, "/v1/chat/completions": True}


class Front(ThreadingHTTPServer):
    """Listens at once; `serve_forever` answers. port: 0 for a free one. Raises `ConfigError` if it can't listen."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, host: str, port: int, serving: Serving) -> None:
        self.serving = serving
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError("--port", f"{host}:{port} can't be listened on: {error}; choose another") from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error; whatever else is unexpected was answered already."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"foreword/{__version__}"
    timeout = 600  # seconds that a connection may be silent

    @property
    def _serving(self) -> Serving:
        return cast(Front, self.server).serving

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no request that is known here gets JSON, too."""
        self.close_connection = True
        problem = message or self.responses.get(code, ("it is no request",))[0]
        self._send({"error": {"message": problem, "type": "invalid_request_error", "code": code}}, code)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is written for each request."""

    def _guarded(self, answer: Any) -> None:
        """Answer; whatever goes wrong becomes JSON."""
        self._begun = False
        try:
            answer()
        except Unanswered as problem:
            self._fail(problem.status, problem.kind, str(problem))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except ForewordError as error:
            self._fail(503, "engine_error", str(error))
        except Exception as error:  # noqa: BLE001 - a fault in one request must not stay without an answer
            self._fail(500, "server_error", f"unexpected {type(error).__name__}: {error}")

    def _fail(self, status: int, kind: str, problem: str) -> None:
        error = {"error": {"message": problem, "type": kind, "code": status}}
        with suppress(OSError):
            if self._begun:  # the head of a stream is out
                self._event(error)
                self.close_connection = True
            else:
                self._send(error, status)

    def _get(self) -> None:
        if self.path == "/health":
            self._serving.require_alive()
            self._send({"status": "ok"})
        elif self.path == "/v1/models":
            models = [{"id": name, "object": "model", "owned_by": "foreword"} for name in self._serving.names]
            self._send({"object": "list", "data": models})
        else:
            raise Unanswered(f"there is no {self.path:.100}; GET /v1/models or /health", 404, "not_found")

    def _post(self) -> None:
        body = self._body()
        chat = _ROUTES.get(self.path)
        if chat is None:
            raise Unanswered(f"there is no {self.path:.100}; POST to {' or '.join(_ROUTES)}", 404, "not_found")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Unanswered(f"the request is no JSON: {error}") from error
        question = read_question(asked, chat)
        if question.stream:
            self._stream(question)
        else:
            self._send(_whole(question, self._serving.answer(question)))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12:
            self.close_connection = True
            raise Unanswered("the request must tell its Content-Length", 411)
        if int(length) > MOST_BYTES:
            self.close_connection = True
            raise Unanswered(f"the request has {int(length):,} bytes; at most {MOST_BYTES:,} are read", 413)
        return self.rfile.read(int(length))

    def _send(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, question: Question) -> None:
        name, made = _name(question), int(time.time())
        with closing(self._serving.stream(question)) as pieces:
            first = next(pieces)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self._begun = self.close_connection = True
            for piece in chain([first], pieces):
                self._event(_chunk(question, piece, name, made))
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


def _name(question: Question) -> str:
    return ("chatcmpl-" if question.chat else "cmpl-") + uuid.uuid4().hex


def _whole(question: Question, piece: Piece) -> dict[str, Any]:
    """Return an answer in OpenAI's form."""
    said: dict[str, Any] = {"index": 0, "finish_reason": piece.finish_reason, "logprobs": None}
    said |= {"message": {"role": "assistant", "content": piece.text}} if question.chat else {"text": piece.text}
    kind = "chat.completion" if question.chat else "text_completion"
    return _told(question, kind, said, _name(question), int(time.time())) | {"usage": _usage(piece)}


def _chunk(question: Question, piece: Piece, name: str, made: int) -> dict[str, Any]:
    """Return one event of a stream in OpenAI's form."""
    said: dict[str, Any] = {"index": 0, "finish_reason": piece.finish_reason, "logprobs": None}
    said |= {"delta": {"role": "assistant", "content": piece.text}} if question.chat else {"text": piece.text}
    kind = "chat.completion.chunk" if question.chat else "text_completion"
    usage = {} if piece.finish_reason is None else {"usage": _usage(piece)}
    return _told(question, kind, said, name, made) | usage


def _told(question: Question, kind: str, said: dict[str, Any], name: str, made: int) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": made, "model": question.model, "choices": [said]}


def _usage(piece: Piece) -> dict[str, int]:
    total = piece.prompt_tokens + piece.tokens
    return {"prompt_tokens": piece.prompt_tokens, "completion_tokens": piece.tokens, "total_tokens": total}
