"""A prefix trained on a tiny model, and settings to compress it with."""

from __future__ import annotations

from pathlib import Path

import foreword
from foreword.base import Base
from foreword.compression.data import recorded_settings
from foreword.config import CompressConfig
from foreword.prefix import Prefix
from training_helpers import settings, write_rows

CHOICES = ["svd-1", "int8", "drop-to-1/2", "merge-to-1/2", "drop-to-1/4+int8", "merge-to-1/2+svd-1"]


def trained(folder: Path, base: Base) -> Path:
    """`folder` with rows, and a prefix trained on them."""
    write_rows(folder)
    foreword.train(base, settings(folder, length=8, steps=20, prefix_dtype="float16"))
    return folder


def config(place: Path, **changes) -> CompressConfig:
    folder = place / "run" / "prefix"
    recorded = recorded_settings(Prefix.load(folder).record, folder)
    values = {"prefix": str(folder), "bleu": False, "choices": tuple(CHOICES)}
    return CompressConfig(**(recorded | values | changes))
