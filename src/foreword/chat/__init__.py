"""A conversation with a base, whose prefix may change from turn to turn."""

from __future__ import annotations

from foreword.chat.session import Session

__all__ = ["Session"]
