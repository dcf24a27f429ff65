"""The value that training produces and everything else consumes.

value     `Prefix` and `Fingerprint`
kinds     what each kind of prefix is made of, and how it joins attention: one class per kind
stored    the saved form: tensors and a manifest in a folder
encoding  stored forms of a tensor that take fewer bytes
"""

from __future__ import annotations

from foreword.prefix.kinds import EMBEDDINGS, KV
from foreword.prefix.value import Fingerprint, Prefix

__all__ = ["EMBEDDINGS", "KV", "Fingerprint", "Prefix"]
