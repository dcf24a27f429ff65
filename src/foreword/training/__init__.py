"""Training: the loop, its checkpoints and its run folder."""

from __future__ import annotations

from foreword.training.result import TrainResult
from foreword.training.run import train

__all__ = ["TrainResult", "train"]
