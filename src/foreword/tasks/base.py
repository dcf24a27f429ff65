"""The seam between what is asked of a model and everything else: a `Task` reads rows, predicts, and measures itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from foreword.base import Base
from foreword.base.inputs import ready
from foreword.data import BadRow, Item, Reading, load_items
from foreword.prefix import Prefix
from foreword.tasks.predictions import Predictions

Advance = Callable[[int], None]  # told how many more rows are done
ItemT = TypeVar("ItemT", bound=Item)
T = TypeVar("T")


@dataclass(frozen=True)
class TaskSettings:
    """What a task is told: the template and fields of its rows (None: its own), its options, and whether it may pack rows."""

    template: str | None = None
    input_field: str | None = None
    target_field: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    packing: bool = True


@dataclass(frozen=True)
class PromptItem:
    """One row for the model. prompt_ids: what it reads. target: the answer in words. where: file and line."""

    prompt_ids: tuple[int, ...]
    target: str
    where: str

    @property
    def target_ids(self) -> tuple[int, ...]:
        return ()

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def content(self) -> Any:
        return {name: value for name, value in vars(self).items() if name != "where"}


@dataclass(frozen=True)
class Measurement:
    """values: metric → number. texts: the answers in row order. signatures: of metrics that have one."""

    values: dict[str, float]
    texts: list[str]
    signatures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measuring:
    """How a task is measured. batch_size: rows at once. max_new_tokens: of a written answer.

    advance: told how many more rows are done. clean: what is taken of a written answer.
    """

    batch_size: int = 16
    max_new_tokens: int = 64
    advance: Advance = lambda rows: None
    clean: Callable[[str], str] = str.strip


class Task(ABC, Generic[ItemT]):
    """What is asked of `base`. Registered by name in `foreword.tasks`.

    head: what is trained beside the prefix, or None. labels: the classes, where there are any.
    metrics: those it can measure, the loss among them. input_field, target_field: of its rows, unless told otherwise.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    input_field: ClassVar[str] = "text"
    target_field: ClassVar[str] = "label"

    def __init__(self, base: Base, settings: TaskSettings) -> None:
        self.base, self.settings = base, settings
        self.head: nn.Module | None = None
        self.labels: list[str] = []

    @property
    def template(self) -> str | None:
        """The template in use, as a record keeps it."""
        return self.settings.template

    @property
    def places(self) -> int:
        """How many virtual tokens its template has a place for."""
        return 0

    def roles(self) -> set[str]:
        """Roles of the slots that its forward pass uses."""
        return {slot.role for slot in self.base.slots}

    def ahead(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prepare for items of `rows`, which are made next."""

    @abstractmethod
    def item(self, fields: Mapping[str, Any], where: str) -> ItemT | str:
        """The item of a row, or a text that says what is wrong with it."""

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take from the training rows what only they tell, such as the labels. Called once, before any item is made."""

    def load(self, source: str, reading: Reading) -> tuple[list[ItemT], list[BadRow]]:
        """Items of all usable rows in file order, and the bad rows. Raises `DataError` as `load_items` does."""
        return load_items(source, self.item, reading, self.ahead)

    def pads(self, items: Sequence[ItemT], inserted: bool) -> bool:
        """Whether batches of `items` have padding, which rows of like length have least of. inserted: the prefix is
        inserted among the embeddings."""
        return True

    def units(self, item: ItemT) -> int:
        """What an item counts for: the sum of its predictions' weights."""
        return 1

    @abstractmethod
    def predict(self, prefix: Prefix | None, items: Sequence[ItemT]) -> tuple[Predictions, ...]:
        """What the model says of `items` with `prefix` attached; differentiable. Several if outputs differ in kind."""

    def losses(self, prefix: Prefix | None, items: Sequence[ItemT]) -> Tensor:
        """The task's own measure of what training improves: cross entropy in nats, weighted, one per prediction.

        Its sum divided by the sum of `units` is the validation loss, whatever the objective of a run is.
        """
        return torch.cat([made.weighted(made.target_losses()) for made in self.predict(prefix, items)])

    @abstractmethod
    def measure(
        self, prefix: Prefix | None, items: Sequence[ItemT], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        """The metrics among `metrics` that are not read off the losses."""

    def derived(self, loss: float) -> dict[str, float]:
        """Metrics that follow from the mean loss."""
        return {"loss": loss}

    def state(self) -> dict[str, Any]:
        """What is saved of it beside the prefix and is no tensor, as JSON values."""
        fields = {"input_field": self.settings.input_field, "target_field": self.settings.target_field}
        return {"task": self.name, "labels": self.labels, "options": dict(self.settings.options)} | fields

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.labels = [str(label) for label in state.get("labels", [])]


@contextmanager
def attached(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Attach `prefix` for rows of `prompts`; yields their token ids, virtual tokens included."""
    rows, ids = ready(base, [prefix] * len(prompts), prompts)
    with base.attach(one_or_each(rows)):
        yield ids


def one_or_each(rows: list[Prefix | None]) -> Prefix | list[Prefix | None] | None:
    """What `attach` takes for `rows`: a single prefix where they all have the same."""
    return rows[0] if all(row is rows[0] for row in rows) else rows


def pieces(tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """`tensor` cut along its first dimension into parts of the given sizes."""
    return list(torch.split(tensor, list(sizes)))


def summed_loss(
    task: Task[Any],
    items: Sequence[Item],
    prefix: Prefix | None,
    batch_size: int,
    advance: Advance = lambda rows: None,
    part: tuple[int, int] = (0, 1),
) -> tuple[float, int]:
    """(summed loss in nats, sum of the items' units) over `items`, without gradients.

    part: (r, R) computes every R-th batch from the r-th on. All parts run equally many batches, for
    bases that are sharded over processes; one too many is not counted.
    """
    order = sorted(range(len(items)), key=lambda index: items[index].num_tokens)
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    total, count = 0.0, 0
    with torch.no_grad():
        for number in range(part[0], -(-len(cut) // part[1]) * part[1], part[1]):
            chosen = [items[index] for index in cut[min(number, len(cut) - 1)]]
            losses = task.losses(prefix, chosen)
            if number < len(cut):
                total += float(losses.double().sum())
                count += sum(task.units(item) for item in chosen)
            advance(len(chosen))
    return total, count


def in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
