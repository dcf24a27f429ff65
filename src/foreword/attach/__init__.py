"""Attaching prefixes to a Transformers model: hooks and bookkeeping, no mathematics.

contexts    what is attached in the present context: a thread, or an asyncio task
state       what the hooks on one model share
disguise    the classes that a model and its configs have while something is attached
attachment  the prefixes of one attach, prepared for attention
inject      attaching and detaching; the two routes
changing    one change of hooks at a time, and none while something is compiled
seeing      what attention layers get
function    first route: the attention function that Transformers calls
cached      second route: a prefix in front of the cache
entry       what happens before a stack runs
positions   shifting the real tokens' positions
recompute   activation checkpointing that also works after the end of an attach
virtual     virtual tokens among the input embeddings
"""

from __future__ import annotations

from foreword.attach.attachment import BACKENDS
from foreword.attach.inject import attach, carried, installed, switch
from foreword.attach.seeing import capture, observed

__all__ = ["BACKENDS", "attach", "capture", "carried", "installed", "observed", "switch"]
