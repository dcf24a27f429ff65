"""Whether a prefix fits a base, by what its version says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.models.shapes import base_shape


def fits_base(made_on: Mapping[str, Any], base: Any) -> bool:
    """Return True if a prefix has the shapes of a base or a configuration. made_on: its fingerprint's fields."""
    config = base.model.config if hasattr(base, "model") else base
    return all(made_on.get(name) == value for name, value in base_shape(config).items())
