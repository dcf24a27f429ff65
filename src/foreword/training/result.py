"""What a run comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.prefix import Prefix
from foreword.shown import Shown


@dataclass(frozen=True, repr=False)
class TrainResult(Shown):
    """prefix: the best one by validation loss, as saved. run: its folder. history: rows as in history.jsonl.

    initial: the prefix at step 0. steps: updates done. stopped_early: patience ran out.
    """

    prefix: Prefix
    initial: Prefix
    run: Path
    history: list[dict[str, Any]]
    steps: int
    validation_loss: float
    stopped_early: bool

    def _shown(self) -> tuple[str, dict[str, Any]]:
        early = ", stopped early" if self.stopped_early else ""
        losses = [row["validation_loss"] for row in self.history if "validation_loss" in row]
        loss = " → ".join(f"{value:.4f}" for value in (*losses[:1], self.validation_loss))
        title = f"TrainResult: validation loss {loss} after {self.steps} steps{early}"
        return title, {"run": self.run, "prefix": self.prefix._shown()[0]}
