"""Initialisation: the prefix at step 0. `initial_prefix` chooses by name among text, vocab, random and prefix."""

from __future__ import annotations

from foreword.init.start import initial_prefix

__all__ = ["initial_prefix"]
