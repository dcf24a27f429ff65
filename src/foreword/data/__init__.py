"""Data: readers that report every bad row with file and line, and items for the model."""

from __future__ import annotations

from foreword.data.examples import Example, Item, Reading, load_items
from foreword.data.readers import read_rows
from foreword.data.rows import BadRow, Row

__all__ = ["BadRow", "Example", "Item", "Reading", "Row", "load_items", "read_rows"]
