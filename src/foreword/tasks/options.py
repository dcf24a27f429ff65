"""Check a task's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from foreword.settings import build

Options = TypeVar("Options")


def options_of(kind: type[Options], values: Mapping[str, Any], task: str) -> Options:
    """Make the task's options from plain values. Raises `ConfigError` for an unknown or wrong one."""
    return build(kind, values, f"task_options of {task}")
