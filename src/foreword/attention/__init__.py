"""Attention with prefixes: the exact two-part form, its backends, and injection into a model.

merge       the two-part product and its gradient (the fast path)
reference   concatenation with an explicit mask (what the fast path is held to)
backends    kernels that return an output and its log-sum-exp
rows        which rows of a batch use which prefix
positions   shifting the real tokens' positions
inject      attaching to a Transformers model, and detaching
recompute   activation checkpointing that survives the end of an attach
"""

from __future__ import annotations

from foreword.attention.inject import BACKENDS, attach, capture

__all__ = ["BACKENDS", "attach", "capture"]
