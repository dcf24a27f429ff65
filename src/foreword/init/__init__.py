"""Initialisation: the prefix at step 0. `starting_point` chooses by name.

start      `starting_point` and its settings
text       tokens of a text or of frequent words
mean       every token is the mean of words
random     noise with the mean and spread of the base's keys and values
selection  which slots take a prefix, and how long each is
"""

from __future__ import annotations

from foreword.init.start import Beginning, starting_point

__all__ = ["Beginning", "starting_point"]
