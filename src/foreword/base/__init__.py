"""The base model: load and freeze one, attach prefixes to it, make its inputs, let it write.

frozen      `FrozenModel`: a model with its slots and fingerprint, to which prefixes attach
base        `Base`: the same with inputs, generation and prefixes made from texts; what everybody uses
loading     hub id, folder, GGUF file or bundled model → `Base`
rendering   prompts as the model reads them
inputs      rows made ready for their prefixes
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
