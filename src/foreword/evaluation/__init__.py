"""Evaluation: loss, perplexity and text metrics of a base, with or without a prefix."""

from __future__ import annotations

from foreword.evaluation.run import EvalResult, Progress, evaluate, evaluate_items, require_metrics

__all__ = ["EvalResult", "Progress", "evaluate", "evaluate_items", "require_metrics"]
