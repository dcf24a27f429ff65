"""The interface of tasks: a `Task` reads rows, predicts, and measures its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from foreword.base import Base
from foreword.base.inputs import ready
from foreword.data import BadRow, Item, Reading, load_items
from foreword.data.row_cache import Known
from foreword.errors import DataError
from foreword.prefix import Prefix
from foreword.shapes import SHAPES, of_task
from foreword.tasks.predictions import Predictions

Advance = Callable[[int], None]  # called with the number of rows that have been finished since the last call
ItemT = TypeVar("ItemT", bound=Item)
T = TypeVar("T")


@dataclass(frozen=True)
class TaskSettings:
    """Settings of a task.

    template, input_field, target_field: of its rows; None: the task's own. options: settings of this kind of task.
    packing: True if the task may pack rows. shape, turns: see `TrainConfig`.
    """

    template: str | None = None
    input_field: str | None = None
    target_field: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    packing: bool = True
    shape: str = "auto"
    turns: Literal["all", "last"] = "all"


@dataclass(frozen=True)
class PromptItem:
    """One row for the model. prompt_ids: its token ids. target: the answer as a text. where: file and line."""

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
    """values: metric → number. texts: the answers in row order. signatures: metric → signature, if it has one."""

    values: dict[str, float]
    texts: list[str]
    signatures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measuring:
    """How a task is measured.

    batch_size: rows in a batch. max_new_tokens: the most tokens of a generated answer. advance: see `Advance`.
    clean: returns the part of a generated answer that counts.
    """

    batch_size: int = 16
    max_new_tokens: int = 64
    advance: Advance = lambda rows: None
    clean: Callable[[str], str] = str.strip


class Task(ABC, Generic[ItemT]):
    """What `base` has to do. `foreword.tasks` registers tasks by name.

    head: a module that is trained together with the prefix, or None. labels: the classes, if there are any.
    metrics: those the task can measure, with the loss. input_field, target_field: the default fields of its rows.
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
        """The template in use, in the form that a record stores."""
        return self.settings.template

    @property
    def places(self) -> int:
        """The number of virtual tokens that its template has places for."""
        return 0

    def roles(self) -> set[str]:
        """Return the roles of the slots that its forward pass uses."""
        return {slot.role for slot in self.base.slots}

    def ahead(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prepare for the items of `rows`, which are made next."""

    @abstractmethod
    def item(self, fields: Mapping[str, Any], where: str) -> ItemT | str:
        """Return the item of a row, or a text that says what is wrong with the row."""

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Learn from the training rows what only they contain, such as labels. Called once, before any item is made."""

    def load(self, source: str, reading: Reading) -> tuple[Sequence[ItemT], list[BadRow]]:
        """Return the items of usable rows in file order, and the bad rows. Raises `DataError` as `load_items` does."""
        return load_items(source, self.item, reading, self.ahead, self.hint, self.known())

    def known(self) -> Known | None:
        """Return what its items can be known again by, so that those of large files are kept; None: by nothing."""
        return None

    def hint(self, fields: Mapping[str, Any]) -> str:
        """Return what would help where no row can be used; `fields` are those of the first."""
        other = of_task(fields) or next(("lm" for shape in SHAPES.values() if shape.matches(fields)), None)
        if other not in (None, self.name):
            return f"They look like rows of another task: --task {other}"
        wanted = {"--input-field": self.input_field, "--target-field": self.target_field}
        given = {"--input-field": self.settings.input_field, "--target-field": self.settings.target_field}
        missing = [flag for flag, name in wanted.items() if not given[flag] and name not in fields]
        free = [str(name) for name in fields if name not in (*wanted.values(), *given.values())]
        return f"Say which field it is: {' '.join(missing)} {'|'.join(free[:4])}" if missing and free else ""

    def pads(self, items: Sequence[ItemT], inserted: bool) -> bool:
        """Return True if batches of `items` have padding, so that rows of similar length should share a batch.

        inserted: True if the prefix is inserted among the embeddings.
        """
        return True

    def units(self, item: ItemT) -> int:
        """Return the weight of an item: the sum of its predictions' weights."""
        return 1

    @abstractmethod
    def predict(self, prefix: Prefix | None, items: Sequence[ItemT]) -> tuple[Predictions, ...]:
        """Return the model's predictions for `items` with `prefix` attached, differentiable.

        There are several `Predictions` if outputs differ in kind.
        """

    def losses(self, prefix: Prefix | None, items: Sequence[ItemT]) -> Tensor:
        """Return the loss of each prediction: cross entropy in nats, times the prediction's weight.

        The sum of losses divided by the sum of `units` is the validation loss, for every objective.
        """
        return torch.cat(
            [predictions.weighted(predictions.target_losses()) for predictions in self.predict(prefix, items)]
        )

    @abstractmethod
    def measure(
        self, prefix: Prefix | None, items: Sequence[ItemT], metrics: Sequence[str], measuring: Measuring
    ) -> Measurement:
        """Measure those of `metrics` that don't follow from the losses."""

    def derived(self, loss: float) -> dict[str, float]:
        """Return the metrics that follow from the mean loss."""
        return {"loss": loss}

    def needs(self, what: str, rows: Sequence[Mapping[str, Any]]) -> DataError:
        """Return the error for training rows that teach no classes. rows: the first of them, or none."""
        hint = self.hint(rows[0]) if rows else ""
        return DataError(f"{self.name} needs {what}{f'. {hint}' if hint else ''}")

    def rendering(self) -> dict[str, Any]:
        """Return how rows were rendered, as JSON values for a prefix's record."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what is saved with the prefix and is no tensor, as JSON values."""
        fields = {"input_field": self.settings.input_field, "target_field": self.settings.target_field}
        return {"task": self.name, "labels": self.labels, "options": dict(self.settings.options)} | fields

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.labels = [str(label) for label in state.get("labels", [])]


@contextmanager
def attached(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Attach `prefix` for rows of `prompts`; yield their token ids, virtual tokens included."""
    rows, ids = ready(base, [prefix] * len(prompts), prompts)
    with base.attach(one_or_each(rows)):
        yield ids


def one_or_each(rows: list[Prefix | None]) -> Prefix | list[Prefix | None] | None:
    """Return `rows` for `attach`: a single prefix if all rows have the same one."""
    return rows[0] if all(row is rows[0] for row in rows) else rows


def noting(rows: Iterable[T], first: list[T]) -> Iterator[T]:
    """Yield `rows`, and put the first of them into the empty list `first`."""
    for row in rows:
        if not first:
            first.append(row)
        yield row


def pieces(tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Split `tensor` along its first dimension into pieces of the given sizes."""
    return list(torch.split(tensor, list(sizes)))


def summed_loss(
    task: Task[Any],
    items: Sequence[Item],
    prefix: Prefix | None,
    batch_size: int,
    advance: Advance = lambda rows: None,
    part: tuple[int, int] = (0, 1),
) -> tuple[float, int]:
    """Return (summed loss in nats, sum of the items' units) over `items`, without gradients.

    part: (r, R) computes every R-th batch from the r-th on. All parts run equally many batches, because a base that is
    sharded over processes needs that; a surplus batch is not counted.
    """
    order = sorted(range(len(items)), key=lambda index: items[index].num_tokens)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    total, count = 0.0, 0
    with torch.no_grad():
        for number in range(part[0], -(-len(batches) // part[1]) * part[1], part[1]):
            chosen = [items[index] for index in batches[min(number, len(batches) - 1)]]
            losses = task.losses(prefix, chosen)
            if number < len(batches):
                total += float(losses.double().sum())
                count += sum(task.units(item) for item in chosen)
            advance(len(chosen))
    return total, count


def in_batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `items` in order, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
