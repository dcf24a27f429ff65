"""Run folders: listed, found and compared. Nothing here imports PyTorch."""

from __future__ import annotations

from foreword.runs.comparing import Comparison, compare
from foreword.runs.found import find
from foreword.runs.one_run import Run, read

__all__ = ["Comparison", "Run", "compare", "find", "read"]
