"""Evaluation: loss, perplexity and text metrics of a base, with or without a prefix."""

from __future__ import annotations

from foreword.evaluation.run import EvalResult, evaluate, evaluate_examples, evaluate_items

__all__ = ["EvalResult", "evaluate", "evaluate_examples", "evaluate_items"]
