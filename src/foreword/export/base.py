"""The seam between a prefix and what runs it elsewhere: an `Exporter` says what it can hold, writes it, and tells how
to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from foreword.prefix import Prefix


class Exporter(ABC):
    """One format. name: in the registry. summary: a line for people."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def refusal(self, prefix: Prefix) -> str | None:
        """Why `prefix` can't be written in this format; None if it can."""

    @abstractmethod
    def write(self, prefix: Prefix, folder: Path) -> None:
        """Write `prefix` into the empty `folder`."""

    @abstractmethod
    def usage(self, folder: Path) -> str:
        """The commands or the code that run what was written in `folder`."""
