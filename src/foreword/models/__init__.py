"""Base models: load and freeze one, list its attention slots, attach prefixes to it."""

from __future__ import annotations

from foreword.models.base import Base
from foreword.models.loading import load

__all__ = ["Base", "load"]
