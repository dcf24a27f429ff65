"""Every error Foreword raises on purpose.

    ForewordError
    ├── ConfigError             a setting is wrong; names the field
    ├── DataError               a data file or row is wrong; names file, line and field
    ├── DependencyError         an optional package is missing; says how to install it
    ├── StorageError            a file can't be written (full disk, no rights); names it
    ├── ModelError              a base model can't be loaded
    │   └── UnsupportedModelError   it loads, but Foreword can't attach to it; names the module
    ├── EngineError             another program that runs the base doesn't start, or has ended
    ├── PrefixError             something is wrong with a prefix
    │   ├── PrefixFormatError       its files are damaged, incomplete or of another version
    │   ├── PrefixMismatchError     it does not fit the base it is given to
    │   ├── UnknownPrefixError      there is none of that name
    │   ├── CompressionError        it can't be made smaller in the requested way
    │   ├── ExportError             another format can't hold it, or it can't be written there
    │   ├── TagConflictError        a tag of a store was moved by another writer
    │   └── ImportFormatError       another program's files can't become a prefix
    ├── AttachError             a prefix can't be used in this call
    │   ├── BatchMismatchError      rows of the batch and attached prefixes don't match
    │   ├── PositionError           prefix plus tokens exceed the model's positions
    │   ├── AttentionArgumentError  the model passes its attention an argument that no backend supports
    │   └── RecomputeError          activation checkpointing in a form that would lose gradients
    └── TrainingError           a run can't start or continue
        ├── NonFiniteError          a loss or gradient was NaN or infinite; names step and rows
        ├── InterruptedRunError     SIGINT or SIGTERM came; the run was saved
        ├── CheckpointError         a checkpoint can't be read or doesn't belong to this run
        └── RunInUseError           another process is writing in the run's folder

Warnings: `WeightsMismatchWarning` (same shapes, other weights), `SubstituteModelWarning` (a hub
model was replaced by its bundled quantised copy), `ChatTemplateWarning` (the base has another chat template than the
prefix was trained with), `OldFormatWarning` (a saved file's digest covers less than all of it), `WindowWarning` (a
cache of Transformers will forget the prefix).
"""

from __future__ import annotations

from collections.abc import Sequence


class ForewordError(Exception):
    """Base of every error that Foreword raises on purpose. Its text is one line for people to read."""

    @property
    def anchor(self) -> str:
        """The entry of docs/troubleshooting.md that says what to do."""
        kind = next(kind for kind in type(self).__mro__ if kind.__module__ == __name__)
        return f"troubleshooting#{kind.__name__.lower()}"


class ConfigError(ForewordError):
    """A setting is wrong. `field` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class DataError(ForewordError):
    """A data file or row is wrong. The text names file, line and field; `problems` lists every bad row, the text
    the first `shown`."""

    shown = 3

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class DependencyError(ForewordError):
    """An optional package is missing."""


class StorageError(ForewordError):
    """A file can't be written. The former file is unchanged, and no incomplete file stays."""


class ModelError(ForewordError):
    """A base model can't be loaded."""


class UnsupportedModelError(ModelError):
    """Foreword can't attach prefixes to this architecture. The text names the module."""


class EngineError(ForewordError):
    """A program that Foreword starts to run the base, such as llama-server, doesn't start, has ended or gives no
    answer; the text has the last of what it printed."""


class PrefixError(ForewordError):
    """Something is wrong with a prefix."""


class PrefixFormatError(PrefixError):
    """A saved prefix is damaged, incomplete or of another format version."""


class UnknownPrefixError(PrefixError):
    """There is no saved prefix of that name."""


class PrefixMismatchError(PrefixError):
    """A prefix doesn't fit the base model it is given to."""


class CompressionError(PrefixError):
    """A prefix can't be compressed in the requested way, or no choice fits the limit; the text names the nearest."""


class ExportError(PrefixError):
    """A prefix can't be written in the requested format; the text says why."""


class TagConflictError(PrefixError):
    """A tag of a store doesn't mean what it was expected to mean: another writer has moved it. Nothing was changed."""


class ImportFormatError(PrefixError):
    """What another program saved can't become a prefix: it is damaged, or no prefix. The text says why."""


class AttachError(ForewordError):
    """An attached prefix can't be used in this call."""


class BatchMismatchError(AttachError):
    """The rows of the batch and the attached prefixes don't match."""


class PositionError(AttachError):
    """Prefix and tokens together exceed the positions the model has."""


class AttentionArgumentError(AttachError):
    """The model passes its attention an argument that no backend supports. The text names it."""


class RecomputeError(AttachError):
    """Activation checkpointing is set up in a form that would lose the prefix's gradients."""


class TrainingError(ForewordError):
    """A training run can't start or continue."""


class NonFiniteError(TrainingError):
    """A loss or gradient is NaN or infinite. No update was made."""


class InterruptedRunError(TrainingError):
    """A signal ended the run after it was saved. `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class CheckpointError(TrainingError):
    """A checkpoint can't be read, or belongs to another run."""


class RunInUseError(TrainingError):
    """Another run, in this process or another, is writing in the same folder. The text names it."""


class WeightsMismatchWarning(UserWarning):
    """The base has the right shapes, but other weights than the prefix was trained on."""


class SubstituteModelWarning(UserWarning):
    """A hub model could not be reached. Its bundled quantised copy is used instead."""


class ChatTemplateWarning(UserWarning):
    """The base's chat template is not the one that the prefix was trained with."""


class OldFormatWarning(UserWarning):
    """A saved file has an older format, whose digest doesn't cover all of it. The text says what it covers."""


class WindowWarning(UserWarning):
    """A prefix became a cache of a base with sliding windows, where the cache will forget it. The text says when."""
