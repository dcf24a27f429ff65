"""Objectives: what a run minimises. The registry is closed; an objective is one file and one line here.

A package can add one without a change here: an entry point in the group `foreword.objectives` (see `plugins`).
"""

from __future__ import annotations

from foreword import plugins
from foreword.objectives.base import Objective
from foreword.objectives.cross_entropy import CrossEntropy

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (CrossEntropy,)}


def get_objective(name: str) -> Objective:
    """The objective called `name`. Raises `ConfigError` listing the known ones."""
    return plugins.find("foreword.objectives", "objective", OBJECTIVES, name)()


__all__ = ["OBJECTIVES", "Objective", "get_objective"]
