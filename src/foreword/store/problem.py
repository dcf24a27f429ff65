"""What is wrong in a store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something in a store is damaged. where: `team/task`, `team/task@tag` or `team/task@digest`."""

    where: str
    what: str
