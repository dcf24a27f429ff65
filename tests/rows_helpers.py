"""Rows for language modelling without a base, and their mean loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.base import Base
from foreword.base.rendering import Renderer
from foreword.data import BadRow, Example, LmRows, Reading, RowSettings, load_items
from foreword.prefix import Prefix
from foreword.tasks import LanguageModelling, Task, TaskSettings, summed_loss


def load_examples(
    source: str, renderer: Renderer, target_field: str = "target", **reading: Any
) -> tuple[Sequence[Example], list[BadRow]]:
    """The examples of a file, rendered by `renderer`; reading: see `Reading`."""
    rows = LmRows(renderer, RowSettings(target_field=target_field))
    return load_items(source, rows.item, Reading(**reading), rows.ahead)


def item_of(task: Task[Any], fields: dict[str, Any]) -> Any:
    """The item of a row that is as it should be."""
    item = task.item(fields, "here")
    assert not isinstance(item, str), item
    return item


def mean_loss(base: Base, items: Sequence[Example], prefix: Prefix | None, batch_size: int) -> tuple[float, int]:
    """(mean loss in nats per target token, target tokens)."""
    total, count = summed_loss(LanguageModelling(base, TaskSettings()), items, prefix, batch_size)
    return total / count, count
