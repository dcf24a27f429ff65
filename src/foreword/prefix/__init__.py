"""The value that training produces and all other code uses.

value     `Prefix` and `Fingerprint`
kinds     the kinds of prefix: their tensors, and how they join attention; one class per kind
stored    the saved form: tensors and a manifest in a folder
records   what a record may say, and where the rest is
encoding  stored forms of a tensor that take fewer bytes
"""

from __future__ import annotations

from foreword.prefix.kinds import EMBEDDINGS, KV
from foreword.prefix.value import Fingerprint, Prefix

__all__ = ["EMBEDDINGS", "KV", "Fingerprint", "Prefix"]
