"""Objects of a place that fsspec reaches: whole, by their paths. Its errors become Foreword's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foreword.errors import ConfigError, StorageError
from foreword.extras import require


class Objects:
    """The objects under an fsspec URL. options: fsspec's storage options, such as `endpoint_url`.

    Raises `ConfigError` for a URL that fsspec can't use, `DependencyError` if a package is missing; the methods raise
    `StorageError` if the place can't be reached.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        fsspec = require("fsspec", f"to reach {url}")
        try:
            self._files, root = fsspec.url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise ConfigError("store", f"{url} can't be reached: {error}; install the package that it names") from error
        except (ValueError, TypeError) as error:
            raise ConfigError("store", f"{url} can't be reached: {error}") from error
        self._root = root.rstrip("/")

    def read(self, *parts: str, most: int) -> bytes | None:
        """Return an object of at most `most` bytes; None if there is none. Raises `StorageError` for a larger one."""
        path = self._path(parts)
        with self._reaching(path):
            try:
                data: bytes = self._files.cat_file(path, start=0, end=most + 1)
            except (FileNotFoundError, IsADirectoryError):
                return None
        if len(data) > most:
            raise StorageError(f"{self._shown(path)} has more than {most:,} bytes, which it should have at most")
        return data

    def write(self, *parts: str, data: bytes) -> None:
        """Write an object, whole."""
        path = self._path(parts)
        with self._reaching(path):
            self._make_parent(path)
            self._files.pipe_file(path, data)

    def create(self, *parts: str, data: bytes) -> bool:
        """Write an object unless there is one. Return False if there was. Atomic where the place can do so."""
        path = self._path(parts)
        with self._reaching(path):
            if self._files.exists(path):
                return False
            self._make_parent(path)
            try:
                self._files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _refused(error):
                    return False
                raise
        return True

    def swap(self, *parts: str, data: bytes, before: bytes | None) -> bool:
        """Write an object if it is `before` until now (None: there is none). Return False if it is not.

        On S3 the write has a condition, so that of two writers one is refused; elsewhere it is compared first.
        """
        if before is None:
            return self.create(*parts, data=data)
        path = self._path(parts)
        with self._reaching(path):
            tag = {"IfMatch": self._files.info(path)["ETag"]} if self._has_conditions else {}
            if self._files.cat_file(path) != before:
                return False
            try:
                self._files.pipe_file(path, data, **tag)
            except OSError as error:
                if _refused(error):
                    return False
                raise
        return True

    def names(self, *parts: str) -> list[str]:
        """Return the names of what lies under a path, in order; [] if nothing does."""
        path = self._path(parts)
        with self._reaching(path):
            try:
                entries = self._files.ls(path, detail=False, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        inner = (entry.strip("/") for entry in entries)
        return sorted({entry.rpartition("/")[2] for entry in inner if entry != path.strip("/")})

    def remove(self, *parts: str) -> None:
        """Remove an object or all that lies under a path; what isn't there is no error."""
        path = self._path(parts)
        with self._reaching(path):
            try:
                self._files.rm(path, recursive=True)
            except FileNotFoundError:
                return

    @property
    def _has_conditions(self) -> bool:
        protocol = self._files.protocol
        return "s3" in (protocol if isinstance(protocol, tuple | list) else (protocol,))

    def _make_parent(self, path: str) -> None:
        if not self._has_conditions:  # S3 has no folders
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _path(self, parts: tuple[str, ...]) -> str:
        return "/".join((self._root, *parts))

    def _shown(self, path: str) -> str:
        return f"{self.url}{path.removeprefix(self._root)}"

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        """Turn the errors of file systems and of their clients into a `StorageError` that names the object."""
        try:
            yield
        except _failures() as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(
                f"{self._shown(path)} can't be reached: {reason:.300}; look at the address, the keys and the network"
            ) from error


def _failures() -> tuple[type[Exception], ...]:
    """Return what file systems raise; clients have errors of their own, known once they are imported."""
    found: list[type[Exception]] = [OSError, ValueError, TimeoutError]
    for module, name in (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _refused(error: OSError) -> bool:
    """Return True if a condition of the write was not met."""
    text = str(error)
    return any(word in text for word in ("PreconditionFailed", "ConditionalRequestConflict", "pre-conditions"))
