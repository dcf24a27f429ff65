"""Making a trained prefix smaller, and measuring what that costs.

forms       how a tensor is stored and trained: the seam, and storing it plain
svd, int8   two forms of fewer bytes
mass        how much attention real queries give each virtual token
tokens      fewer virtual tokens: dropped or merged by that mass
choices     the closed registry: names, and what they do
recover     short training against the uncompressed prefix's outputs
run         the sweep
pick        which of the measured choices to keep
"""

from __future__ import annotations

from foreword.compression.pick import MeasuredChoice
from foreword.compression.run import CompressResult, compress

__all__ = ["CompressResult", "MeasuredChoice", "compress"]
