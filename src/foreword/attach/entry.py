"""What happens before a stack runs: set positions, wrap checkpointed layers, and put the prefix in the cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from foreword.attach import cached, positions, recompute, virtual
from foreword.attach.attachment import Attachment
from foreword.attach.state import State
from foreword.attention.call import refuse_attentions
from foreword.errors import AttachError, BatchMismatchError
from foreword.models.slots import ModelSlots
from foreword.models.stacks import Stack


class Entry:
    """The pre-hook of one stack."""

    def __init__(self, state: State, model: nn.Module, stack: Stack, slots: ModelSlots) -> None:
        module = model.get_submodule(stack.path)
        self._state, self._model, self._stack, self._slots = state, model, stack, slots
        self._names = parameters_of(module)
        self._layers = recompute.candidates(module)
        self._first = stack is slots.stacks[0]  # in an encoder–decoder the encoder, which reads the prompts
        self.view = cached.CacheView(slots) if slots.route == "cache" else None

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """Return the changed arguments; None: they stay, as in a context without an attachment.

        kwargs: None in a pass that another thread began while the hooks were being installed or removed.
        """
        attachment = self._state.current
        if attachment is None or kwargs is None:
            return None
        arguments = by_name(self._names, args, kwargs)
        refuse_attentions(arguments, getattr(module, "config", None))
        past = positions.past_length(arguments)
        self._state.start_pass(attachment, past)
        if attachment.has_embeddings and self._first and not past:
            virtual.require_virtual(self._model, arguments.get("input_ids"), attachment)
        if attachment.packed is not None:
            self._unpadded(module, arguments, attachment)
        else:
            self._positions(arguments, attachment)
        if self.view is not None:
            self.view.put_prefix(module, arguments, attachment)
        elif not torch.compiler.is_compiling():  # also without gradients: layers checkpoint whenever they train
            recompute.wrap(self._layers, self._state)
        return (), arguments

    def _unpadded(self, module: nn.Module, arguments: dict[str, Any], attachment: Attachment) -> None:
        """Restart the positions in each packed row. No mask is needed: attention knows where the rows end."""
        lengths = attachment.packed.queries if attachment.packed else ()
        tokens = self._require_packed(module, arguments, lengths)
        positions_in_rows = attachment.packed_positions(arguments.get("position_ids"), tokens.device)
        if self._stack.position_limit is not None:
            highest = max(attachment.offsets)
            bound = max(lengths) + highest if arguments.get("position_ids") is None else 2**31
            positions.check_limit(arguments, positions_in_rows, self._stack.position_limit, bound, highest)
        # given a 4-D mask, Transformers makes none; the attention function ignores this one
        mask = positions_in_rows.new_zeros((1, 1, 1, 1), dtype=torch.float32)
        arguments |= {"position_ids": positions_in_rows, "attention_mask": mask}

    def _require_packed(self, module: nn.Module, arguments: dict[str, Any], lengths: tuple[int, ...]) -> Tensor:
        """Return the packed tokens.

        Raises `BatchMismatchError` for tokens of another shape, `AttachError` for a call with a cache or a mask.
        """
        tokens = positions.tokens_of(arguments)
        if tokens is None or tuple(tokens.shape[:2]) != (1, sum(lengths)):
            shape = None if tokens is None else tuple(tokens.shape[:2])
            raise BatchMismatchError(
                f"packed rows of {sum(lengths)} tokens are one row [1, {sum(lengths)}], got {shape}"
            )
        use_cache = arguments.get("use_cache")
        if self._state.this_pass.past or (
            getattr(module.config, "use_cache", False) if use_cache is None else use_cache
        ):
            raise AttachError("packed rows share no cache; call the model with use_cache=False")
        if arguments.get("attention_mask") is not None:
            raise AttachError("packed rows take no attention_mask; their lengths say what a token sees")
        return tokens

    def _positions(self, arguments: dict[str, Any], attachment: Attachment) -> None:
        limit, tokens = self._stack.position_limit, positions.tokens_of(arguments)
        highest = max(attachment.offsets) if self._stack.shift in ("arguments", "table") else 0
        # on the cache route the prefix is in the cache view, so the model would count its tokens
        explicit = highest > 0 or (self._slots.route == "cache" and self._slots.explicit_positions)
        if tokens is None or (limit is None and not explicit):
            return
        batch, n = tokens.shape[:2]
        offsets = attachment.offset_tensor(batch, tokens.device)
        shifted = self._shifted(arguments, attachment, offsets) if explicit else None
        if limit is not None and not torch.compiler.is_compiling():
            bound = int(positions.past_length(arguments)) + n + highest
            positions.check_limit(arguments, shifted, limit, bound, highest)
        if self._stack.shift == "table":
            self._state.this_pass.positions = shifted
        elif shifted is not None and "position_ids" in self._names:
            arguments["position_ids"] = shifted

    def _shifted(self, arguments: dict[str, Any], attachment: Attachment, offsets: Tensor) -> Tensor:
        if self._stack.shift == "table":  # such a stack counts padding
            return positions.running(arguments) + offsets
        keep_own = min(attachment.offsets) == 0 and not self._slots.counts_mask
        return positions.shifted_positions(arguments, offsets, keep_own)


def parameters_of(module: nn.Module) -> list[str]:
    """Return the parameter names of `module.forward`, in order."""
    return list(inspect.signature(module.forward).parameters)


def by_name(names: list[str], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name. names: the parameters in order, for the positional `args`."""
    return dict(zip(names, args, strict=False)) | kwargs
