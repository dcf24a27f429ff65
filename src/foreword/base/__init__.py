"""The base model: load and freeze it, attach prefixes, make its inputs, generate text.

frozen      `FrozenModel`: a model with its slots and fingerprint, to which prefixes attach
base        `Base`: a `FrozenModel` that also makes inputs, generates, and makes prefixes from texts; used everywhere
loading     hub id, folder, GGUF file or bundled model → `Base`
rendering   prompts as the model reads them
inputs      token ids and tensors for rows with prefixes
generation  batched generation with a prefix per prompt
cache       a key/value cache that grows in place
rope        rotating keys to another position
compose     prefixes made of texts, tensors and other prefixes
sharding    weights spread over processes
"""

from __future__ import annotations

from foreword.base.base import Base
from foreword.base.loading import load

__all__ = ["Base", "load"]
