"""Proof at load: an architecture outside the table is tried with a tiny random model before a prefix is attached.

gate        `require_proof`: the table's architectures pass; others are tried once, and the outcome is remembered
remembered  outcomes in Foreword's cache folder
shrinking   a small configuration of the same family
sizes       what a number in it becomes, by its name
small       the tiny model, and whether it has every kind of part that the real one has
trial       batches and runs of the tiny model; its own eager attention over concatenated keys
nature      what sees what, and what positions do
checks      prefix, gradient, padding, mixed rows, decoding, and the controls
company     attention is nothing but attention
"""

from __future__ import annotations

from foreword.proof.gate import require_proof

__all__ = ["require_proof"]
