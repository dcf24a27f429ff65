"""Data: readers that report every bad row with file and line, and examples ready for the model."""

from __future__ import annotations

from foreword.data.examples import Example, load_examples
from foreword.data.readers import BadRow, Row, read_rows

__all__ = ["BadRow", "Example", "Row", "load_examples", "read_rows"]
