"""Initialisation: the prefix at step 0. `starting_point` chooses by name among text, vocab, random and prefix."""

from __future__ import annotations

from foreword.init.start import starting_point

__all__ = ["starting_point"]
