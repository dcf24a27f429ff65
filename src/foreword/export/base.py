"""The seams of interchange: an `Exporter` says what its format can hold, writes it, and tells how to run it; an
`Importer` makes a prefix of what another program has saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from foreword.base import Base
from foreword.base.loading import load_config, load_tokenizer
from foreword.errors import ExportError, ModelError
from foreword.models import bundled
from foreword.prefix import Prefix


class BaseFiles:
    """The configuration and the tokenizer of a prefix's base, read when they are asked for. The weights are not.

    name: hub id, folder, `.gguf` file or bundled name; None: not known.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name

    @classmethod
    def of(cls, base: Base) -> BaseFiles:
        """Return those of a base that is loaded."""
        files = cls(str(base.name))
        files.__dict__["config"] = base.model.config
        files.__dict__["tokenizer"] = base.tokenizer
        return files

    @property
    def location(self) -> str:
        """What other programs load the base from: its hub id, or the folder of its files; BASE if it is not known."""
        if self.name == bundled.NAME:
            return str(bundled.ensure())
        return self.name or "BASE"

    @cached_property
    def config(self) -> Any:
        """Transformers' configuration. Raises `ExportError` if it is not known or can't be read."""
        return self._read(load_config, "configuration")

    @cached_property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer. Raises `ExportError` if it is not known, can't be read, or there is none."""
        if (tokenizer := self._read(load_tokenizer, "tokenizer")) is None:
            raise ExportError(f"{self.name} has no tokenizer, which this format needs; name the base with --model")
        return tokenizer

    def _read(self, read: Any, what: str) -> Any:
        if self.name is None:
            raise ExportError(f"the {what} of the prefix's base is needed; say where the base is with --model")
        try:
            return read(self.name)
        except ModelError as error:
            raise ExportError(f"the {what} of the prefix's base is needed: {error}; name it with --model") from error


class Exporter(ABC):
    """One format. name: in the registry. summary: a line for people.

    is_program: what `usage` returns is Python code with `folder = …` on a line of its own and "PROMPT" for texts; it is
    written into the folder as `ask.py` too.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    is_program: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, prefix: Prefix, base: BaseFiles) -> str | None:
        """Why `prefix` can't be written in this format; None if it can. `base` costs nothing unless it is asked."""

    @abstractmethod
    def write(self, prefix: Prefix, base: BaseFiles, folder: Path) -> None:
        """Write `prefix` into the empty `folder`."""

    @abstractmethod
    def usage(self, folder: Path, base: BaseFiles) -> str:
        """The commands or the code that run what was written in `folder`."""


def untried(kind: str, reasons: Mapping[str, str], known: str) -> str:
    """Say why a prefix of a `model_type` outside a format's table is refused: the reason, or what is in the table."""
    return f"it is of {kind}: {reasons[kind]}" if kind in reasons else f"it is of {kind}; {known}"


class Importer(ABC):
    """One format of another program. name: in the registry. summary: a line for people."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether `folder` looks like this format. Never raises for a folder of something else."""

    @abstractmethod
    def base_name(self, folder: Path) -> str | None:
        """The name of the base that the files tell; None if they tell none. Raises `ImportFormatError`."""

    @abstractmethod
    def read(self, folder: Path, base: Base) -> Prefix:
        """Return the prefix in `folder` for `base`.

        Raises `ImportFormatError` for damaged files and for what can't be a prefix, with the reason;
        `PrefixMismatchError` for another base.
        """
