"""Initialisation: the prefix at step 0. `starting_point` chooses by name.

start      `starting_point`, and what it is told
text       tokens of words and of frequent words
mean       every token the mean of words
random     noise like the base's own keys and values
selection  which slots take a prefix, and how long each is
"""

from __future__ import annotations

from foreword.init.start import Beginning, starting_point

__all__ = ["Beginning", "starting_point"]
