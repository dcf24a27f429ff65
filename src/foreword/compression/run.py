"""`compress`: measure every choice on a trained prefix, and pick one."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foreword import status
from foreword.base import Base
from foreword.compression.choices import UNCOMPRESSED, Choice, default_names, parse, require_compressible
from foreword.compression.data import SweepRows, load_rows, with_recorded
from foreword.compression.forms import Compressed
from foreword.compression.mass import attention_mass
from foreword.compression.pick import MeasuredChoice, best_under, smallest_within
from foreword.compression.recover import recover
from foreword.compression.tokens import require_tokens
from foreword.config import CompressConfig
from foreword.errors import ConfigError, NonFiniteError, PrefixError
from foreword.evaluation import Progress, evaluate_items
from foreword.prefix import Prefix
from foreword.prefix.places import located
from foreword.prefix.records import public_prefix
from foreword.prefix.stored import require_replaceable
from foreword.shown import Shown
from foreword.tasks import Measuring, summed_loss
from foreword.versions.finding import means_store
from foreword.versions.opening import in_version


@dataclass(frozen=True, repr=False)
class CompressResult(Shown):
    """rows: the measured choices, the uncompressed prefix first. picked: the row that was picked, or None if the config
    asks for none. output: the folder it was written to, or None.
    """

    rows: tuple[MeasuredChoice, ...]
    picked: MeasuredChoice | None = None
    output: Path | None = None

    def _shown(self) -> tuple[str, dict[str, Any]]:
        title = f"CompressResult: {len(self.rows) - 1} choices measured beside the uncompressed prefix"
        losses = [row.loss for row in self.rows]
        facts: dict[str, Any] = {"losses": f"{min(losses):.4f} to {max(losses):.4f}"}
        if (picked := self.picked) is not None:
            facts["picked"] = f"{picked.choice}, {picked.num_bytes / 1000:,.0f} KB, loss {picked.loss:.4f}"
        return title, facts | ({"output": self.output} if self.output else {})


def compress(
    base: Base, config: CompressConfig, prefix: Prefix | None = None, progress: Progress | None = None
) -> CompressResult:
    """Measure ways to make `prefix`, or the one saved at `config.prefix`, smaller.

    With `config.keep_loss` or `config.max_kb` pick one and write it. Each choice is measured in the form in which it
    would be stored and loaded again. progress: called with (name of the stage, number done, total number).
    Raises `ConfigError`, `DataError`, `PrefixFormatError` (also if the output holds something that is no prefix),
    `PrefixMismatchError`, `CompressionError` for a prefix that can't be compressed or if no choice fits the limit,
    `PositionError` for fewer tokens on a model that counts positions by its cache.
    """
    return keep(sweep(base, config, prefix, progress), config)


def sweep(
    base: Base, config: CompressConfig, prefix: Prefix | None = None, progress: Progress | None = None
) -> tuple[MeasuredChoice, ...]:
    """Do the measurements of `compress`: return one row for the uncompressed prefix, then one for each choice."""
    check(config)
    if not config.prefix and prefix is not None:
        return _swept(base, config, prefix, progress)
    with located(config.prefix) as folder:
        return _swept(base, dataclasses.replace(config, prefix=folder), prefix or Prefix.load(folder), progress)


def _swept(base: Base, config: CompressConfig, prefix: Prefix, progress: Progress | None) -> tuple[MeasuredChoice, ...]:
    require_compressible(base, prefix)
    config = with_recorded(config, prefix.record)
    choices = [parse(name) for name in config.choices or default_names(base, prefix)]
    by_mass = any(choice.needs_mass for choice in choices)
    if by_mass:
        require_tokens(base, prefix)
    rows = load_rows(base, prefix, config, needs_training=by_mass or config.recover > 0)
    measurer = _Sweep(base, config, prefix, rows)
    measurer.prepare(by_mass)
    measured: list[MeasuredChoice] = []
    for number, choice in enumerate([None, *choices]):
        status.doing("measuring choices", number, len(choices) + 1)
        measured.append(measurer.measure(choice))
        if progress is not None:
            progress("choices", number + 1, len(choices) + 1)
    return tuple(measured)


def check(config: CompressConfig) -> None:
    """Check what can be checked before a model is loaded.

    Raises `ConfigError` for an unknown choice or a missing output folder, `PrefixFormatError` for an output that holds
    something other than a prefix.
    """
    for name in config.choices:
        parse(name)
    output = output_of(config)
    if output is not None:
        require_replaceable(output)


def keep(rows: Sequence[MeasuredChoice], config: CompressConfig) -> CompressResult:
    """Pick a row by `config` and write it. Raises `CompressionError` if no row fits."""
    output = output_of(config)
    if output is None:
        return CompressResult(tuple(rows))
    if config.max_kb is not None:
        picked = best_under(rows, config.max_kb)
    else:
        picked = smallest_within(rows, float(config.keep_loss or 0.0))
    picked.compressed.prefix.save(output, picked.compressed.encoding)
    return CompressResult(tuple(rows), picked, output)


def output_of(config: CompressConfig) -> Path | None:
    """Return the folder for the picked prefix; None if none is to be picked.

    Raises `ConfigError` if no folder is named, or if it is that of the uncompressed prefix.
    """
    if config.keep_loss is None and config.max_kb is None:
        return None
    original = Path(config.prefix)
    if config.output is None and (not config.prefix or means_store(original) or in_version(original)):
        raise ConfigError("output", "name a folder for the prefix that is picked")
    output = Path(config.output) if config.output is not None else original.with_name(f"{original.name}-compressed")
    if config.prefix and os.path.realpath(output) == os.path.realpath(original):  # of a loop of links, too
        raise ConfigError("output", f"{output} is the uncompressed prefix itself; name another folder")
    return output


class _Sweep:
    """Measures the choices of one sweep, with the rows and the attention mass that they share."""

    def __init__(self, base: Base, config: CompressConfig, prefix: Prefix, rows: SweepRows) -> None:
        self._base, self._config, self._prefix, self._rows = base, config, public_prefix(prefix), rows
        self._mass: Mapping[str, Tensor] = {}
        self._uncompressed_loss = math.nan

    def prepare(self, by_mass: bool) -> None:
        """Measure the loss of the uncompressed prefix and, if `by_mass`, the attention mass of its tokens."""
        config = self._config
        self._uncompressed_loss = self._loss(self._prefix)
        if by_mass:
            examples = self._rows.for_mass(config.mass_rows, config.seed)
            self._mass = attention_mass(self._base, self._prefix, examples, config.batch_size)

    def measure(self, choice: Choice | None) -> MeasuredChoice:
        """Measure one choice; None: the uncompressed prefix."""
        if choice is None:
            return self._measured(UNCOMPRESSED, Compressed(self._prefix, {}), self._uncompressed_loss)
        student = choice.student(self._prefix, self._mass)
        compressed = student.finish()
        loss, steps = self._loss(compressed.prefix), self._config.recover
        if not steps:
            return self._measured(choice.name, compressed, loss)
        config = self._config
        try:
            recover(
                self._base, self._prefix, student, self._rows.training,
                steps=steps, lr=config.lr, batch_size=config.batch_size, seed=config.seed,
            )  # fmt: skip
            recovered = student.finish()
            after = self._loss(recovered.prefix)
        except (NonFiniteError, PrefixError) as error:
            return self._measured(choice.name, compressed, loss, note=str(error))
        if after < loss:
            return self._measured(choice.name, recovered, after, steps)
        return self._measured(choice.name, compressed, loss)

    def _measured(
        self, name: str, compressed: Compressed, loss: float, recovered: int = 0, note: str | None = None
    ) -> MeasuredChoice:
        config = self._config
        if name != UNCOMPRESSED:
            compressed = dataclasses.replace(
                compressed, prefix=self._recorded(name, compressed.prefix, loss, recovered)
            )
        bleu = None
        if config.bleu:
            measuring = Measuring(config.batch_size, config.max_new_tokens)
            result = evaluate_items(self._rows.task, self._rows.validation, compressed.prefix, ("bleu",), measuring)
            bleu = result.metrics["bleu"]
        size = stored_bytes(compressed)
        return MeasuredChoice(name, compressed, compressed.prefix.length, size, loss, bleu, recovered, note)

    def _recorded(self, name: str, prefix: Prefix, loss: float, recovered: int) -> Prefix:
        """Return `prefix` with a record of its compression and of its present loss."""
        compression = {
            "choice": name,
            "of": self._prefix.digest,
            "recovery_steps": recovered,
            "uncompressed_loss": self._uncompressed_loss,
            "rows": len(self._rows.validation),
        }
        return prefix.with_record(prefix.method, {**prefix.record, "validation_loss": loss, "compression": compression})

    def _loss(self, prefix: Prefix) -> float:
        total, count = summed_loss(self._rows.task, self._rows.validation, prefix, self._config.batch_size)
        return total / count


def stored_bytes(compressed: Compressed) -> int:
    """Save `compressed` in a temporary folder and return the size of this folder in bytes, manifest included."""
    with tempfile.TemporaryDirectory(prefix="foreword-") as parent:
        folder = compressed.prefix.save(Path(parent) / "prefix", compressed.encoding)
        return sum(file.stat().st_size for file in folder.iterdir())
