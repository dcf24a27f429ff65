"""Make a trained prefix smaller, and measure the loss of quality.

forms       how a tensor is stored and trained: the interface, and plain storage
svd, int8   two forms that take fewer bytes
mass        how much attention real queries give each virtual token
tokens      fewer virtual tokens: drop or merge those with least mass
choices     the closed registry of choices by name
recover     short training against the uncompressed prefix's outputs
run         the sweep
pick        which of the measured choices to keep
"""

from __future__ import annotations

from foreword.compression.pick import MeasuredChoice
from foreword.compression.run import CompressResult, compress

__all__ = ["CompressResult", "MeasuredChoice", "compress"]
