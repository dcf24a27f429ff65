"""Training: the loop, its checkpoints and its run folder."""

from __future__ import annotations

from foreword.training.run import TrainResult, train

__all__ = ["TrainResult", "train"]
