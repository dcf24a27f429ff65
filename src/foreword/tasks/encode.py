"""Hidden states of a base for task heads, whatever its architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from foreword.base import Base
from foreword.base.inputs import padded, vocabulary
from foreword.errors import ConfigError
from foreword.models.lora import without_lora
from foreword.prefix import Prefix
from foreword.tasks.base import attached

Pooling = Literal["auto", "mean", "first", "last"]


def token_states(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(last hidden states `[B, n, hidden]`, which are the prompts' own tokens, boolean `[B, n]`).

    Of an encoder–decoder they are the encoder's. Padding and virtual tokens are not among the prompts' own.
    """
    with attached(base, prefix, prompts) as ids:
        inputs, mask = padded(base, ids, left=False).values()
        if base.model.config.is_encoder_decoder:
            states = base.model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        else:
            states = _stack(base)(**_arguments(base, inputs, mask)).last_hidden_state
    return states, mask.bool() & (inputs < vocabulary(base))


def pooled_states(
    base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]], pooling: Pooling = "auto"
) -> Tensor:
    """One vector per prompt, `[B, hidden]`.

    auto: an encoder's mean over its own tokens, a decoder's last token, the first state that an encoder–decoder's decoder
    makes of its start token. first: an encoder's [CLS].
    """
    if base.model.config.is_encoder_decoder and pooling == "auto":
        return _decoder_state(base, prefix, prompts)
    states, own = token_states(base, prefix, prompts)
    kind = pooling if pooling != "auto" else "mean" if base.slots[0].role == "encoder" else "last"
    if kind == "mean":
        weights = own.to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(1) / weights.sum(1)
    places = torch.arange(states.shape[1], device=states.device).expand_as(own)
    chosen = places.masked_fill(~own, -1).amax(1) if kind == "last" else places.masked_fill(~own, 2**31).amin(1)
    return states[torch.arange(len(states), device=states.device), chosen]


def _decoder_state(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Tensor:
    with attached(base, prefix, prompts) as ids:
        inputs, mask = padded(base, ids, left=False).values()
        start = inputs.new_full((len(inputs), 1), int(base.model.config.decoder_start_token_id or 0))
        output = _stack(base)(
            input_ids=inputs, attention_mask=mask, decoder_input_ids=start, output_hidden_states=True, use_cache=False
        )
    states: Tensor = output.decoder_hidden_states[-1]
    return states[:, 0]


def pair_ids(base: Base, first: str, second: str, **options: Any) -> Any:
    """The tokenizer's encoding of two texts; a line break stands between them where it puts no token of its own."""
    tokenizer = base.tokenizer
    apart = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
    return tokenizer(first if apart else first + "\n", second, **options)


def require_places(base: Base, what: str) -> None:
    """Raises `ConfigError` where the tokenizer can't say where `what`, as slow ones can't."""
    if not base.tokenizer.is_fast:
        raise ConfigError("model", f"{base.name} has a slow tokenizer, which does not say where {what}")


def glues_words(base: Base) -> bool:
    """Whether the tokenizer runs words together that it gets one by one, as byte-level ones do."""
    found = base.tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return " " not in base.tokenizer.decode(found)


def encoder_side(base: Base) -> set[str]:
    """The roles of slots that reading alone uses."""
    both = bool(base.model.config.is_encoder_decoder)
    return {slot.role for slot in base.slots} - ({"decoder", "cross"} if both else set())


def own_states(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Per prompt the states of its own tokens, `[tokens, hidden]`: virtual tokens and padding left out."""
    states, own = token_states(base, prefix, prompts)
    return [rows[kept] for rows, kept in zip(states, own, strict=True)]


def _stack(base: Base) -> Any:
    """The model below its output layer, or the model itself where it has none to leave out."""
    return without_lora(base.model).base_model


def _arguments(base: Base, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """A causal model's tokens don't see the padding behind them, and need no mask."""
    if all(slot.role == "decoder" for slot in base.slots) and base.model_slots.route == "attention":
        return {"input_ids": ids, "use_cache": False}
    return {"input_ids": ids, "attention_mask": mask}
