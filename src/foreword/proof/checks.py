"""What a tiny model must hold with prefixes attached, against its own eager attention over concatenated keys.

Each check raises `CheckFailed`. The controls show that each of them could have failed: leaving out the prefix, the mask
or the offset must change the result by a hundred times the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreword import attach
from foreword.errors import AttachError
from foreword.models import rotary
from foreword.models.architectures import Architecture, Rotary
from foreword.models.slots import ModelSlots
from foreword.prefix import KV, Fingerprint, Prefix
from foreword.proof.nature import distance
from foreword.proof.trial import Batch, Trial

TOLERANCE = 1e-4
CONTROL = 100 * TOLERANCE
SIZES = (23, 9, 17)
LENGTHS = (5, 3)  # virtual tokens of the two prefixes
DELTA = 7  # by which an offset is changed
STEPS = 2  # tokens decoded one by one
_BASE = Fingerprint("proof", "proof", 1, 1, 1)


class CheckFailed(Exception):
    """A check does not hold. The text says which, and by how much."""


class Checks:
    """The checks of one tiny model. trial: the model. slots: its slots, found with `architecture`."""

    def __init__(self, trial: Trial, architecture: Architecture, slots: ModelSlots) -> None:
        self.trial, self.architecture, self.slots = trial, architecture, slots
        self.stack = slots.stacks[-1].path
        self.left = architecture.kind == "decoder"
        sizes = SIZES if trial.masks else (SIZES[0],) * len(SIZES)
        self.batch = trial.batch(sizes, left=self.left, targets=11)
        self.prefixes = [self.prefix(length) for length in LENGTHS]
        self.expected: list[Tensor] = []  # hidden states with each prefix alone on every row, and with none

    def rest(self) -> Architecture:
        """Make every check after `plain`. Return the architecture with what was found: rotary layout, packing."""
        self.prefixed()
        with torch.no_grad():
            self.unpadded()
            self.mixed()
            self.shifted()
            self.controls()
            self.decoding()
            return replace(self.architecture, layout=self.layout(), packs=self.packs())

    def attached(self, rows: Sequence[Prefix | None], **options: Any) -> AbstractContextManager[None]:
        return attach.attach(self.trial.model, self.slots, rows, **options)

    def run(self, rows: Sequence[Prefix | None], batch: Batch | None = None, **more: Any) -> Tensor:
        with self.attached(rows):
            return self.trial.run(self.batch if batch is None else batch, self.stack, **more)

    def real(self, values: Tensor) -> Tensor:
        """Return the values at real tokens, `[tokens, width]`."""
        mask = None if self.trial.both else self.batch.get("attention_mask")
        return values.flatten(0, 1) if mask is None else values[mask.bool()]

    def require(self, what: str, actual: Tensor, expected: Tensor) -> None:
        if not (found := distance(actual, expected)) <= TOLERANCE:
            raise CheckFailed(f"{what} differs by {found:.1e}, {TOLERANCE:.0e} allowed")

    def prefix(self, length: int) -> Prefix:
        """Return a prefix of captured keys and values, moved a little as training would. Needs gradients."""
        batch = self.trial.batch([length], targets=length)
        with torch.no_grad():
            captured = attach.capture(self.trial.model, self.slots, **batch)
        self._require_shapes(captured)
        slots = {}
        for name, kv in captured.items():
            parts = [part[0][:, :length].clone() for part in kv]
            noise = [0.3 * part.std() * torch.randn(part.shape, generator=self.trial.generator) for part in parts]
            slots[name] = KV(*((part + more).requires_grad_() for part, more in zip(parts, noise, strict=True)))
        return Prefix(slots, length if self.slots.default_offset else 0, _BASE)

    def _require_shapes(self, captured: Mapping[str, KV]) -> None:
        for slot in self.slots.slots:
            if slot.name not in captured:
                raise CheckFailed(f"slot {slot.name} was not reached in a forward pass")
            found = [(part.shape[1], part.shape[3]) for part in captured[slot.name]]
            wanted = [(slot.num_kv_heads, slot.key_dim), (slot.num_kv_heads, slot.value_dim)]
            if found != wanted:
                raise CheckFailed(f"slot {slot.name} has keys and values of (heads, width) {found}, expected {wanted}")

    @torch.no_grad()
    def plain(self) -> None:
        """Nothing attached, and None attached: the model's own result."""
        own = self.trial.run(self.batch, self.stack)
        self.require("the plain model within an attach", self.real(self.run([None])), self.real(own))
        self.expected.append(own)
        for batch in self._unpadded():
            expected = self.trial.run(batch, self.stack)
            self.require("the plain model within an attach, without padding,", self.run([None], batch), expected)

    def _unpadded(self) -> tuple[Batch, Batch]:
        """Return rows of one length, with a mask that hides nothing and without one. Transformers then makes none."""
        whole = self.trial.batch((SIZES[0],) * 2, targets=11)
        return whole, {name: value for name, value in whole.items() if name != "attention_mask"}

    def prefixed(self) -> None:
        """A prefix on every row, with padding: hidden states and the gradient of every tensor of the prefix."""
        for prefix in self.prefixes:
            with self.trial.concatenated(self.slots, prefix.slots):
                expected = self.trial.run(self.batch, self.stack, self._positions(prefix, self.batch))
            values = self.run([prefix])
            self.require("the result with a prefix", self.real(values), self.real(expected))
            if prefix is self.prefixes[0]:
                found, wanted = (self._gradients(result, prefix) for result in (values, expected))
                self.require("the gradient of a prefix", found, wanted)
            self.expected.append(expected.detach())

    def _positions(self, prefix: Prefix, batch: Batch) -> Tensor | None:
        if not prefix.position_offset:
            return None
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        return (mask.cumsum(-1) - 1).clamp(min=0) + prefix.position_offset

    def _gradients(self, values: Tensor, prefix: Prefix) -> Tensor:
        kept = self.real(values)
        weights = torch.randn(kept.shape, generator=torch.Generator().manual_seed(3))
        parts = [part for kv in prefix.slots.values() for part in kv]
        found = torch.autograd.grad((kept * weights).sum(), parts, allow_unused=True)
        return torch.cat([torch.zeros(1) if part is None else part.flatten() for part in found])

    def unpadded(self) -> None:
        """Rows without padding."""
        prefix = self.prefixes[0]
        for batch in self._unpadded():
            with self.trial.concatenated(self.slots, prefix.slots):
                expected = self.trial.run(batch, self.stack, self._positions(prefix, batch))
            self.require("the result with a prefix, without padding,", self.run([prefix], batch), expected)

    def mixed(self) -> None:
        """Two prefixes and none in one batch: each row as if alone."""
        values = self.run([*self.prefixes, None])
        order = (1, 2, 0)  # where each row's own result stands among the expected ones
        for row, number in enumerate(order):
            mask = None if self.trial.both else self.batch.get("attention_mask")
            kept = slice(None) if mask is None else mask[row].bool()
            expected = self.expected[number][row][kept]
            self.require(f"row {row} of a batch with mixed prefixes", values[row][kept], expected)

    def shifted(self) -> None:
        """Another offset: the tokens stand at later positions. Without positions that moves nothing."""
        if not self.slots.shifts or self.trial.both:
            return
        moved = replace(self.prefixes[0], position_offset=self.prefixes[0].position_offset + DELTA)
        values = self.real(self.run([moved]))
        with self.trial.concatenated(self.slots, moved.slots):
            expected = self.trial.run(self.batch, self.stack, self._positions(moved, self.batch))
        self.require("the result at another offset", values, self.real(expected))
        if self.architecture.positions == "none":
            self.require(
                "the result at another offset, which should move nothing,", values, self.real(self.expected[1])
            )

    def controls(self) -> None:
        """Leave out one thing at a time. Each must show."""
        first, expected = self.prefixes[0], self.real(self.expected[1])
        left_out = {"the prefix": self.run([None])}
        if first.position_offset and self.architecture.positions in ("rotary", "learned"):
            left_out["the offset"] = self.run([replace(first, position_offset=0)])
        if self.trial.masks:
            whole = torch.ones_like(self.batch["attention_mask"])  # some models make a mask if they are given none
            left_out["the mask"] = self.run([first], self.batch | {"attention_mask": whole})
        for what, values in left_out.items():
            if not (found := distance(self.real(values), expected)) >= CONTROL:
                raise CheckFailed(
                    f"this proves nothing: leaving out {what} changes the result by {found:.1e} only, "
                    f"less than {CONTROL:.0e}"
                )

    def decoding(self) -> None:
        """Tokens decoded one by one with a cache: the same as over concatenated keys."""
        if self.architecture.kind == "encoder" or not self.trial.caches:
            return
        prefix = self.prefixes[0]
        with self.trial.concatenated(self.slots, prefix.slots):
            expected = self._decoded(self._positions(prefix, self.batch))
        with self.attached([prefix]):
            self.require("decoding with a cache", self._decoded(None), expected)

    def _decoded(self, positions: Tensor | None) -> Tensor:
        """Return the hidden states of the last tokens, `[B, STEPS, width]`, decoded one by one."""
        name = "decoder_input_ids" if self.trial.both else "input_ids"
        total, cache, found = self.batch[name].shape[1], None, []
        first = total - STEPS
        for start, end in [(0, first), *((step, step + 1) for step in range(first, total))]:
            batch = self.batch | {name: self.batch[name][:, start:end]}
            if self.trial.masks and not self.trial.both:
                batch["attention_mask"] = self.batch["attention_mask"][:, :end]
            hidden, cache = self._step(batch, cache, None if positions is None else positions[:, start:end])
            found.append(hidden)
        return torch.cat(found[1:], 1)

    def _step(self, batch: Batch, cache: Any, positions: Tensor | None) -> tuple[Tensor, Any]:
        given: list[Any] = []
        hook = self.trial.model.register_forward_hook(lambda module, args, output: given.append(output))
        try:
            hidden = self.trial.run(batch, self.stack, positions, past_key_values=cache, use_cache=True)
        finally:
            hook.remove()
        cache = getattr(given[-1], "past_key_values", None)
        if cache is None:
            raise CheckFailed("decoding with a cache: the model returns none")
        return hidden, cache

    def packs(self) -> bool:
        """Return True if rows can be packed one after another: as padded ones."""
        if not self.slots.packing_limit:
            return True  # `ModelSlots.packs` already says no
        sizes = [min(size, self.slots.packing_limit) for size in SIZES]
        ids = [self.batch["input_ids"][row][-size:] for row, size in enumerate(sizes)]
        rows = [self.prefixes[0], None, self.prefixes[1]]
        alone = [self.run([row], {"input_ids": own[None]})[0] for row, own in zip(rows, ids, strict=True)]
        try:
            with self.attached(rows, packed=sizes):
                values = self.trial.run({"input_ids": torch.cat(ids)[None]}, self.stack)
        except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttachError):
            return False
        return distance(values[0], torch.cat(alone)) <= TOLERANCE

    def layout(self) -> Rotary:
        """Return the rotary layout by which keys can be moved to another offset; "unknown" if none is exact."""
        if self.architecture.positions != "rotary" or not self.slots.shifts:
            return "unknown"
        prefix = self.prefixes[0]
        radians = {name: rotary.frequencies(self.trial.model, self.slots, name) for name in prefix.slots}
        candidates: tuple[Rotary, ...] = ("half", "interleaved", "last half")
        for layout in candidates:
            slots = {
                name: KV(rotary.rotated(kv.key, DELTA, radians[name], layout), kv.value)
                for name, kv in prefix.slots.items()
            }
            moved = replace(prefix, slots=slots, position_offset=prefix.position_offset + DELTA)
            if distance(self.real(self.run([moved])), self.real(self.expected[1])) <= TOLERANCE:
                return layout
        return "unknown"
