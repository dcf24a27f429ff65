"""Data: readers that report every bad row with file and line, and items for the model."""

from __future__ import annotations

from foreword.data.examples import Item, Reading, load_items
from foreword.data.lm_rows import Example, LmRows, RowSettings
from foreword.data.readers import read_rows
from foreword.data.rows import BadRow, Row

__all__ = ["BadRow", "Example", "Item", "LmRows", "Reading", "Row", "RowSettings", "load_items", "read_rows"]
