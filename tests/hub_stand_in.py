"""A local stand-in of the Hugging Face hub: the requests that `huggingface_hub` makes to push and pull, in memory.

Real commits: each is a snapshot that never changes. What ends in `.safetensors` goes by LFS: to `/lfs/SHA256`, checked.
It can demand tokens, fail, cut an answer off, be slow, and lie about a file.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from foreword import reaching
from hub_answers import ROUTES, Refusal, Repository


@dataclass
class Fault:
    """What goes wrong with the requests whose `METHOD /path` matches `pattern`, so many times."""

    pattern: str
    does: Callable[[Handler], None]
    times: int


class Hub(ThreadingHTTPServer):
    """token: the one that may write and read private repositories; None: everyone may. readers: tokens that may read.

    seen: the requests so far, as `METHOD /path`. strayed: those that took the token to the storage of files.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.token: str | None = None
        self.readers: set[str] = set()
        self.seen: list[str] = []
        self.strayed: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        with self.lock:
            commit = self.repositories[name].at(revision)
            return {
                path: self.objects[data.decode()] if lfs else data
                for path, (lfs, data) in commit.files.items()
                if path != ".gitattributes"
            }

    def write(self, name: str, files: dict[str, bytes | None]) -> None:
        """Commit files to `main` as someone else would; None removes one. The repository is made if needed."""
        with self.lock:
            made = self.repositories.setdefault(name, Repository(private=False))
            before = made.commits[made.branches["main"]].files if made.branches else {}
            after = before | {path: (False, data) for path, data in files.items() if data is not None}
            made.commit(
                "main", "by hand", {path: what for path, what in after.items() if files.get(path, b"") is not None}
            )

    def fail(self, pattern: str, status: int = 500, times: int = 1) -> None:
        """Let requests be answered with an error, before anything is done."""

        def does(handler: Handler) -> None:
            raise Refusal(status, text="out of order")

        self.faults.append(Fault(pattern, does, times))

    def cut(self, pattern: str, times: int = 1) -> None:
        """Let answers end in the middle."""

        def does(handler: Handler) -> None:
            handler.cut = True

        self.faults.append(Fault(pattern, does, times))

    def babble(self, pattern: str, times: int = 1) -> None:
        """Let requests be answered with what no hub says, before anything is done."""

        def does(handler: Handler) -> None:
            raise Refusal(200, text="a page")

        self.faults.append(Fault(pattern, does, times))

    def flood(self, pattern: str, announced: int | None) -> list[int]:
        """Let answers have no end. announced: their Content-Length. Return a list that gets the bytes of each."""
        sent = [0]

        def does(handler: Handler) -> None:
            handler.send_response(200)
            if announced is not None:
                handler.send_header("Content-Length", str(announced))
            handler.end_headers()
            handler.close_connection = True
            while True:  # until the client hangs up, which is an OSError
                sent[0] += handler.wfile.write(bytes(2**20))

        self.faults.append(Fault(pattern, does, 10))
        return sent

    def branches(self, name: str) -> list[str]:
        """Return the branches of a repository; none if it isn't there."""
        return sorted(self.repositories[name].branches) if name in self.repositories else []

    def before(self, pattern: str, does: Callable[[], object], times: int = 1) -> None:
        """Do something before requests are looked at, such as another's push or waiting."""
        self.faults.append(Fault(pattern, lambda handler: void(does()), times))


def void(value: object) -> None:
    """Drop a value."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    cut = False

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        self.cut = False
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.route = unquote(self.path.partition("?")[0])
        line = f"{self.command} {self.route}"
        self.server.seen.append(line)
        if re.fullmatch(r"(GET|PUT) /lfs/.*", line) and self._token() is not None:
            self.server.strayed.append(line)
        try:
            self._go_wrong(line)
            for pattern, answer in ROUTES:
                if found := re.fullmatch(pattern, line):
                    with self.server.lock:
                        status, body, headers = answer(self, **found.groupdict())
                    return self._send(status, body, headers)
            raise Refusal(404, text=f"the stand-in has no {line}")
        except Refusal as error:
            body = json.dumps({"error": str(error)}).encode()
            self._send(error.status, body, {"X-Error-Code": error.code, "X-Error-Message": str(error)})

    do_POST = do_PUT = do_GET

    def _go_wrong(self, line: str) -> None:
        for fault in self.server.faults:
            if fault.times > 0 and re.search(fault.pattern, line):
                fault.times -= 1
                fault.does(self)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.cut else body)
        self.close_connection = self.close_connection or self.cut

    def json(self) -> Any:
        return json.loads(self.body)

    def require_writer(self) -> None:
        if self.server.token is None or self._token() == self.server.token:
            return
        if self._token() is None:
            raise Refusal(401, text="Invalid username or password.")
        raise Refusal(403, text="You don't have the rights")

    def repository(self, name: str) -> Repository:
        """Return a repository that the client may read; the hub doesn't say whether a private one is there."""
        found = self.server.repositories.get(name)
        may = self.server.token is None or self._token() in {self.server.token, *self.server.readers}
        if found is None or (found.private and not may):
            raise Refusal(404 if may else 401, "RepoNotFound", "Repository not found")
        return found

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Yield a hub that answers while the block lasts."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextmanager
def using_hub(tmp_path: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yield a hub that takes the token `writer`, which this process has and uses within the block."""
    for name in reaching._PROXIES:
        patch.delenv(name, raising=False)
    with running_hub() as hub:
        hub.token = "writer"
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", "writer")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has LFS only
        patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield hub
