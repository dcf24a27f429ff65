"""Whether a prefix fits a base, by what its version says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shape_of(config: Any) -> dict[str, Any]:
    """Return the facts of a model's configuration that must be equal for a prefix to fit, as `Fingerprint.shape`."""
    text = config.get_text_config()
    return {
        "model_type": config.model_type,
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "vocab_size": getattr(text, "vocab_size", None) or 0,
    }


def fits_base(made_on: Mapping[str, Any], base: Any) -> bool:
    """Return True if a prefix has the shapes of a base or a configuration. made_on: its fingerprint's fields."""
    config = base.model.config if hasattr(base, "model") else base
    return all(made_on.get(name) == value for name, value in shape_of(config).items())
