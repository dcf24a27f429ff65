"""Attaching prefixes to a Transformers model: all wiring, no mathematics.

state       what is attached to a model now; shared by everything that is installed on it
attachment  the prefixes of one attach, ready for attention
inject      attaching and detaching; the two routes
function    first route: the attention function that Transformers calls
cached      second route: a prefix in front of the cache
entry       what happens before a stack runs
positions   shifting the real tokens' positions
recompute   activation checkpointing that survives the end of an attach
virtual     virtual tokens among the input embeddings
"""

from __future__ import annotations

from foreword.attach.attachment import BACKENDS
from foreword.attach.inject import attach, capture, observed, switch

__all__ = ["BACKENDS", "attach", "capture", "observed", "switch"]
